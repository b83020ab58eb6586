"""Folders of images from anywhere, compared with the held-out images of a run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run_command, works
from PIL import Image
from run_factory import unchanged

from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.runs import RunFolder

THREE = 3
WITHOUT_ATTACKS = ("--set", "evaluation.membership.images=0")
QUICK = tuple(
    word
    for setting in (
        "images=8",
        "attack.loss_draws=1",
        "attack.loss_timesteps=[100]",
        "attack.secmi_stride=50",
    )
    for word in ("--set", f"evaluation.membership.{setting}")
)


def save(folder: Path, images: np.ndarray) -> Path:
    """Write grey images, uint8 ``(n, height, width, 1)``."""
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def root(run_without_threes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was evaluated after class 3 was deleted, and folders of real images."""
    root = tmp_path_factory.mktemp("folders")
    shutil.copytree(run_without_threes, root / "run")
    data = RunFolder.open(root / "run").load_split().test
    images, kept = data.all_images(), data.labels != THREE
    save(root / "held_out", images[kept])
    save(root / "threes", images[~kept])
    save(root / "before", images[kept][:20])
    save(root / "five", images[kept][:5])
    (root / "empty").mkdir()
    works("evaluate", root / "run", *QUICK)
    return root


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root / "run", tmp_path / "run"))


def test_folders_stand_beside_the_states(root: Path, run: Path) -> None:
    plain = Scorecard.from_file(run / "metrics" / "scorecard.json")
    folders = ("--images", root / "held_out", "--images", root / "threes")
    card = works("evaluate", run, *folders, *QUICK)
    values = {measure["name"]: measure["value"] for measure in card["measures"]}
    added = {f"{name}_{folder}" for folder in ("held_out", "threes") for name in ("fd", "kd", "precision")}
    assert added <= values.keys()
    assert {measure.name: measure.value for measure in plain.measures}.items() <= values.items()
    assert values["fd_held_out"] == pytest.approx(0, abs=1e-6), "the same images"
    assert values["precision_held_out"] == values["coverage_held_out"] == 1
    assert values["fd_threes"] > 0.01, "a deleted class is no part of the reference"
    assert card["protocol"]["generated"] == {
        "held_out": len(list((root / "held_out").iterdir())),
        "threes": len(list((root / "threes").iterdir())),
    }


def test_the_table_has_a_column_for_each_folder(root: Path, run: Path) -> None:
    result = run_command("evaluate", run, "--images", root / "threes", "--detect", "0.25", *QUICK)
    assert result.exit_code == 0, result.output
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["before", "after", "random", "threes", "floor"]
    ends = {name: header.index(name) + len(name) for name in header.split()}
    assert number_ends(lines, "fd") == {ends["threes"], ends["floor"]}
    assert number_ends(lines, "fd_retain") == {ends["after"], ends["floor"]}
    assert ends["after"] in number_ends(lines, "forgotten_class_rate_null"), "what the null token gives now"
    assert any(line.startswith("note: fd_threes: ") for line in lines)
    assert any(line.startswith("note: fd_retain_after: ") for line in lines)


def test_images_are_brought_to_the_shape_of_the_run(root: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    for file in sorted((root / "held_out").iterdir())[:300]:
        image = Image.open(file).convert("RGB").resize((24, 24), Image.Resampling.NEAREST)
        image.save(tmp_path / "large" / file.name)
    folders = ("--images", tmp_path / "large", "--images", root / "threes")
    card = works("evaluate", run, *folders, *WITHOUT_ATTACKS)
    values = {measure["name"]: measure["value"] for measure in card["measures"]}
    assert 0 < values["fd_large"] < values["fd_threes"]


def number_ends(lines: list[str], quantity: str) -> set[int]:
    """Return where the numbers of a line of the table end."""
    (line,) = (line for line in lines if line.startswith(f"  {quantity} "))
    return {found.end() for found in re.finditer(r"\S+([ \u00a0]\S+)*(?=  |$)", line) if found.start() > 3}


WRONG = {
    "--images {root}/empty": "got none",
    "--images {root}/nowhere": "existing file or folder",
    "--images {root}/five": "at least 6 images in five for 5 neighbours",
    "--images {root}/before": "another name than the states",
    "--images {root}/threes --images {root}/threes": "different sets of images",
    "--images {root}/threes --detect 0": "above 0 to detect",
    "--images {root}/threes --features fid": "inception-clean",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_mistake_leaves_the_run_alone(words: str, root: Path, run: Path) -> None:
    with unchanged(run):
        assert WRONG[words] in refused("evaluate", run, *words.format(root=root).split())
