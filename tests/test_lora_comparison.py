"""What the comparison of LoRA ensembles compares, with a tiny backbone that hardly learned anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.lora_ensembles import (
    JOINT,
    RATES,
    SETTINGS,
    Settings,
    candidates,
    chosen,
    line,
    summary,
    systems,
)
from evaluation.lora_measuring import (
    Plan,
    deletions,
    floor,
    judged,
    measured,
    sampling_cost,
)
from evaluation.lora_systems import LoraSystem, plain_backbone, semi_parametric
from evaluation.lora_world import UNSEEN, World, load_world
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.repro import torch_generator
from gen_unlearn.training.diffusion_config import TrainingConfig

TINY = [
    "model.block_out_channels=[32]",
    "model.down_block_types=[DownBlock2D]",
    "model.up_block_types=[UpBlock2D]",
    "model.layers_per_block=1",
    "training.images=240",
    "sampling.num_inference_steps=2",
    "evaluation.judge.epochs=2",
]
PLAN = Plan(images=60, single=2, share=0.005, timed=20, repeats=1)
CONFIG = LoraConfig(rank=2, targets=("time_emb_proj", "conv1"), epochs=1, batch_size=64, stack=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backbones")


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return load_world("classes", 0, folder, TINY)


@pytest.fixture(scope="module")
def ensemble(world: World) -> LoraSystem:
    return LoraSystem(world, CONFIG, 6)


def test_the_backbone_saw_no_image_of_the_measured_classes(world: World, folder: Path) -> None:
    unseen = {world.train.class_index(name) for name in UNSEEN}
    assert set(world.classes) == unseen
    assert not unseen & set(world.parts.core.labels.tolist())
    assert unseen == set(world.held_out.labels.tolist()) == set(world.measured.labels.tolist())
    assert not world.parts.core.holds(world.parts.deletable.ids).any()
    assert len(list(folder.iterdir())) == 1
    again = load_world("classes", 0, folder, TINY)
    assert again.backbone_digest == world.backbone_digest
    assert again.backbone_seconds == 0 < world.backbone_seconds


def test_every_image_comes_from_its_own_adapter(world: World, ensemble: LoraSystem) -> None:
    labels, indices = world.labels_and_indices(3)
    sampling = world.config.sampling
    images, plain = (one.draw(labels, indices, sampling) for one in (ensemble, plain_backbone(world)))
    chosen = ensemble.choices(labels, indices, sampling)
    assert len(set(chosen.tolist())) > 1
    pipeline = ensemble.pipeline
    for adapter in np.unique(chosen):
        row = int(np.flatnonzero(chosen == adapter)[0])
        alone = pipeline(
            labels[row : row + 1],
            adapters=[adapter],
            num_inference_steps=sampling.num_inference_steps,
            generator=[torch_generator(sampling.seed, "sample", str(labels[row]), indices[row])],
            output_type="uint8",
        ).images[0]
        assert np.abs(images[row].astype(int) - alone).max() <= 1
    assert not np.array_equal(images, plain)


def test_copies_are_found(world: World) -> None:
    copied = floor(world)
    real = judged(world, world.held_out.all_images(), world.held_out.labels)
    assert copied["near"]["value"] == 1
    assert copied["nearest"] == 0 < copied["nearest_of_held_out"]
    assert real["near"]["value"] == pytest.approx(0.05, abs=0.01)
    assert real["frechet"] == pytest.approx(0, abs=1e-4)
    assert copied["frechet"] > 0.001


def test_costs_of_sampling_and_deletion(world: World) -> None:
    system = LoraSystem(world, CONFIG, 6)
    before = system.ensemble.digest
    sampling = world.config.sampling
    for composition, evaluations in (("route", 2), ("mean", 2), ("mixture", 4)):
        composed = replace(sampling, composition=composition, adapters_per_image=2)
        cost = sampling_cost(world, system, PLAN, composed)
        assert cost["evaluations_per_step"] == evaluations
        assert cost["ratio"] > 0
    row = deletions(world, system, PLAN)
    deletable = len(world.parts.deletable)
    assert 0 < row["deletion"]["median_visits"] < row["deletion"]["visits_of_training"] == deletable
    assert row["deleted"] == row["at_once"] == round(0.005 * deletable)
    assert len(system.ensemble) == deletable - row["deleted"] - PLAN.single
    assert system.ensemble.digest != before
    assert system.ensemble.replay() == []


@pytest.mark.slow
def test_every_generator_is_trained_with_as_many_visits(world: World) -> None:
    short = TrainingConfig(batch_size=60, warmup_images=0)
    settings = Settings(2, CONFIG, CONFIG, short, sizes=((4, 2),))
    built = dict(systems(settings))
    rows = []
    for name in ("backbone alone", JOINT, "ensemble, n=4, k=2", "full fine-tune"):
        system = built[name](world)
        if name != "backbone alone":
            assert system.cost.visits == pytest.approx(2 * len(world.parts.deletable), abs=60)
        rows.append({"seed": 0, "name": name, "visits": system.cost.visits, "seconds": system.cost.seconds})
        rows[-1] |= measured(world, system, PLAN, world.config.sampling)
        assert name in line(rows[-1])
    found = summary(rows)
    assert found[JOINT]["frechet_to_joint"] == {"mean": 1.0, "standard_error": None}
    assert found["backbone alone"]["frechet_to_joint"]["mean"] != 1
    assert rows[2]["adapters"]["with_members"] <= 4


def test_the_semi_parametric_model_has_its_own_guidance(world: World) -> None:
    spm = semi_parametric(world, TINY)
    labels, indices = world.labels_and_indices(1)
    guided, other = (
        one.draw(labels, indices, world.config.sampling) for one in (spm, replace(spm, guidance=None))
    )
    assert spm.guidance == 2
    assert guided.shape == other.shape == (len(labels), 8, 8, 1)
    assert not np.array_equal(guided, other)
    assert set(spm.pipeline.exemplars.labels.tolist()) == set(world.parts.deletable.labels.tolist())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_make_visits_equal_and_deletions_cheap(settings: Settings) -> None:
    assert all(settings.epochs % neighbours == 0 for _, neighbours in settings.sizes)
    assert settings.adapters.stack == 1, "a deletion takes as long as a whole stack"


def test_the_best_learning_rates_are_chosen() -> None:
    choices = RATES["images"]
    tuned = {
        f"{name}, rate {rate:g}": {"frechet": {"mean": abs(place - 1)}}
        for name, rates in choices.items()
        for place, rate in enumerate(rates)
    }
    found = chosen(SETTINGS["images"], choices, {"summary": tuned})
    rates = [found.joint.learning_rate, found.adapters.learning_rate, found.fine_tune.learning_rate]
    assert rates == [rates[1] for rates in choices.values()]
    assert [name for name, _ in candidates(found, choices)] == ["backbone alone", *tuned]
