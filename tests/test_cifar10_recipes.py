"""The recipes of generators on CIFAR-10 run, on small images files of its schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import CONFIGS, works
from small_cifar10 import SmallCifar10, write_small_cifar10

from evaluation.cifar10_generation_world import DDPM, ENSEMBLE, PAPER, PUBLIC, RECIPES, SPM, TINY_OVERRIDES
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.models.denoiser import build_denoiser

FEW_STEPS = (
    "training.images=16",
    "training.batch_size=8",
    "training.warmup_images=8",
    "training.exemplars_per_class=[1,2]",
    "training.checkpoint_images=8",
    "training.dataloader_workers=0",
    "sampling.num_inference_steps=2",
    "sampling.exemplars_per_class=3",
)
NARROW = (
    *TINY_OVERRIDES,
    "model.block_out_channels=[8,8,8,8]",
    "model.norm_num_groups=4",
    "model.attention_head_dim=8",
    "model.layers_per_block=1",
    "model.adapters.count=2",
    "training.images=16",
    "training.batch_size=8",
    "training.warmup_images=8",
    "training.checkpoint_images=8",
)
JUDGED_BY_FEW = ("evaluation.comparison.permutations=10", "evaluation.membership.images=4")
LEVELS = {SPM: "exemplar-only", PUBLIC: "bit-exact", ENSEMBLE: "bit-exact"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> SmallCifar10:
    return write_small_cifar10(tmp_path_factory.mktemp("cifar10"), train=40, test=20)


def recipe(name: str) -> RunConfig:
    return load_config(CONFIGS / f"{name}.yaml")


def words(overrides: tuple[str, ...]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def narrow_run(name: str, images: SmallCifar10, folder: Path) -> Path:
    """Train a recipe with a narrow network, sample from it and, where that is possible, delete a class."""
    run, settings = folder / "run", words((*images.overrides, *NARROW, *JUDGED_BY_FEW))
    works("train", "--config", CONFIGS / f"{name}.yaml", *settings, "--out", run)
    assert works("sample", run, "--out", folder / "images", "--count", 1)["images"] == 10
    if name in LEVELS:
        works("forget", run, "--class", "automobile")
    return run


@pytest.mark.parametrize("name", [DDPM, SPM, PUBLIC, ENSEMBLE])
def test_trains_samples_and_forgets(name: str, images: SmallCifar10, tmp_path: Path) -> None:
    run = narrow_run(name, images, tmp_path)
    levels = {json.loads(path.read_text())["level"] for path in run.glob("receipts/*.json")}
    assert LEVELS[name] in levels if name in LEVELS else not levels


@pytest.mark.slow
@pytest.mark.parametrize("name", [DDPM, SPM, PUBLIC, ENSEMBLE])
def test_is_evaluated(name: str, images: SmallCifar10, tmp_path: Path) -> None:
    found = works("evaluate", narrow_run(name, images, tmp_path))["measures"]
    distances = [measure["name"] for measure in found if measure["name"].startswith("fd")]
    assert distances
    assert {distance.rpartition("_")[2] for distance in distances} == {
        "after" if name in LEVELS else "before"
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_runs_with_its_own_network(name: str, images: SmallCifar10, tmp_path: Path) -> None:
    few_adapters = (
        "model.adapters.count=2",
        "model.adapters.lora.epochs=1",
        "model.router.training.images=64",
        "model.router.training.batch_size=16",
    )
    run, settings = tmp_path / "run", words((*images.overrides, *FEW_STEPS, *few_adapters))
    works("train", "--config", CONFIGS / f"{name}.yaml", *settings, "--out", run)
    sampled = works("sample", run, "--out", tmp_path / "images", "--count", 1, "--class", "ship")
    assert sampled["images"] == 1


@pytest.mark.parametrize(("name", "millions"), [(DDPM, 9.6), (SPM, 9.6), (PUBLIC, 9.6), (PAPER, 38.4)])
def test_has_the_size_that_it_says(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = build_denoiser(recipe(name).model, (32, 32, 3), 10)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.03)


def test_all_read_as_many_images() -> None:
    budgets = [recipe(name).training.steps * recipe(name).training.batch_size for name in (DDPM, SPM, PUBLIC)]
    ensemble = recipe(ENSEMBLE)
    deletable = (1 - ensemble.core.fraction) * 50_000
    adapters = deletable * ensemble.model.adapters.neighbours * ensemble.model.adapters.lora.epochs
    budgets.append(int(ensemble.training.steps * ensemble.training.batch_size + adapters))
    assert max(budgets) / min(budgets) < 1.001
    router = ensemble.model.router.training
    assert router.steps * router.batch_size == 150_016, "the router's are read beside the budget"


def test_all_are_judged_alike() -> None:
    first, *others = [recipe(name) for name in (DDPM, SPM, PUBLIC, ENSEMBLE)]
    for other in others:
        assert other.data == first.data
        assert other.noise == first.noise
        assert other.evaluation == first.evaluation
        assert other.sampling.num_inference_steps == first.sampling.num_inference_steps
