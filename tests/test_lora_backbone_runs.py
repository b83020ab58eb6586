"""Adapter ensembles on backbones from local folders, on the command line: no deletion leaves a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, works
from lora_runs import TINY, tiny_ensemble
from PIL import Image
from run_factory import snapshot
from small_backbones import NAMES, plain_unet, save_text_pipeline

from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder
from gen_unlearn.samples import SampleSet

IMAGES_PER_CLASS = 30
UNGUIDED = ("sampling.guidance_scale=1", "model.adapters.lora.label_dropout=0")
THREE = ("model.adapters.neighbours=3", "model.adapters.lora.horizontal_flip=true")


@dataclass(frozen=True)
class Kind:
    """A kind of backbone: what saves it to a folder, and what its recipe says besides."""

    save: Callable[[Path], object]
    overrides: tuple[str, ...] = ()


KINDS = {
    "unconditional": Kind(lambda folder: plain_unet().save_pretrained(folder), UNGUIDED),
    "no null class": Kind(
        lambda folder: plain_unet(num_class_embeds=len(NAMES)).save_pretrained(folder), UNGUIDED
    ),
    "text-to-image": Kind(save_text_pipeline),
    "three adapters, flips": Kind(
        lambda folder: plain_unet(num_class_embeds=len(NAMES) + 1).save_pretrained(folder), THREE
    ),
}
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "no null class"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes, 8x8, grey: noise on another level for each class."""
    folder, draw = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    for label, name in enumerate(NAMES):
        (folder / name).mkdir()
        for row in range(IMAGES_PER_CLASS):
            pixels = draw.integers(80 * label, 80 * label + 90, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{row}.png")
    return folder


def recipe(kind: str, source: Path, root: Path) -> list[object]:
    """Save a backbone, unless that was done, and return the options that train an ensemble on it."""
    weights = root / "weights"
    if not weights.exists():
        KINDS[kind].save(weights)
    data = (f"data.source={source}", "data.image_size=8", "data.channels=1", "core.fraction=0.5")
    return tiny_ensemble(*data, f"model.weights={weights}", "model.adapters.count=6", *KINDS[kind].overrides)


def trained(kind: str, source: Path, root: Path) -> Path:
    works("train", *recipe(kind, source, root), "--out", root / "run")
    return root / "run"


@pytest.mark.parametrize("kind", ["no null class", *SLOW])
def test_deletions_equal_training_without_the_images(kind: str, source: Path, tmp_path: Path) -> None:
    run, oracle = trained(kind, source, tmp_path), tmp_path / "oracle"
    before = snapshot(run / "model")
    pipeline = RunFolder.open(run).load_pipeline()
    assert isinstance(pipeline, AdapterEnsembleDDPMPipeline)
    assert all(np.abs(state[name]).max() > 0 for state in pipeline.adapters.states.values() for name in state)
    folder = RunFolder.open(run).exemplar_folder()
    label = folder.class_names.index("dog")
    dogs = folder.labels == label
    name = ids_to_hex(folder.ids[~dogs])[0]
    assert works("forget", run, "--id", name)["level"] == "bit-exact"
    assert works("forget", run, "--class", "dog")["removed"] == dogs.sum()
    assert snapshot(run / "model") != before
    works("train", *recipe(kind, source, tmp_path), "--out", oracle, "--without", run)
    assert snapshot(run / "model") == snapshot(oracle / "model")
    for path in (run, oracle):
        works("sample", path, "--out", path.with_name(f"{path.name} images"), "--count", 2)
    drawn = snapshot(tmp_path / "run images")
    assert drawn == snapshot(tmp_path / "oracle images")
    files = {f"{name}-0000{index}.png" for name in ("cat", "car") for index in (0, 1)}
    assert set(drawn) == {"sheet.png", *files}
    line = refused("sample", run, "--class", "dog", "--out", tmp_path / "dogs")
    assert f"no image of class {label} is left" in line
    plan = works("evaluate", run, "--dry-run")
    assert plan["null_images"] == (0 if kind == "no null class" else int(TINY["evaluation.null_images"]))


@pytest.mark.slow
def test_a_backbone_without_a_null_class_is_judged_without_such_images(source: Path, tmp_path: Path) -> None:
    run, oracle = trained("no null class", source, tmp_path), tmp_path / "oracle"
    assert "no null class" in refused("sample", run, "--null", "--out", tmp_path / "null")
    works("evaluate", run)
    works("forget", run, "--class", "dog", "--keep-comparison")
    works("train", *recipe("no null class", source, tmp_path), "--out", oracle, "--without", run)
    works("evaluate", run, "--oracle", oracle)
    opened = RunFolder.open(run)
    card = Scorecard.from_file(opened.scorecard_path)
    assert set(card.samples) == {"before", "after", "oracle"}
    for name in card.samples.values():
        assert not len(SampleSet.from_file(opened.samples_path / name).null.images)
    assert any("the network has no null class" in note for note in card.notes)
    names = {measure.name for measure in card.measures}
    assert "forgotten_class_rate_after" in names
    assert not [name for name in names if "null" in name]
    works("report", run)
