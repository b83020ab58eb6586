"""The command line from end to end, and what it does when it is used wrongly."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from gen_unlearn.cli import app

CONFIGS = Path(__file__).parents[1] / "configs"
VERBS = ["demo", "train", "forget", "sample", "evaluate", "report", "info"]
TINY = {
    "data.test_fraction": "0.5",
    "model.block_out_channels": "[8, 16]",
    "model.norm_num_groups": "4",
    "model.layers_per_block": "1",
    "noise.num_train_timesteps": "100",
    "training.images": "96",
    "training.batch_size": "24",
    "training.exemplars_per_class": "[1, 3]",
    "sampling.num_inference_steps": "2",
    "evaluation.images_per_class": "3",
    "evaluation.null_images": "5",
    "evaluation.judge.epochs": "1",
    "evaluation.judge.width": "8",
}


def run_command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def works(*arguments: object) -> dict[str, Any]:
    """Run a command with ``--json`` and return the object on the last line."""
    result = run_command(*arguments, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout.splitlines()[-1], parse_constant=lambda text: pytest.fail(f"{text} in JSON"))
    assert isinstance(facts, dict)
    return facts


def refused(*arguments: object) -> str:
    """Run a command that must fail; return its one line on standard error."""
    result = run_command(*arguments)
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def tree(folder: Path) -> dict[str, int]:
    """Return everything below a folder, with the time of its last change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def tiny(base: str = "digits_spm.yaml") -> list[object]:
    overrides = [f"{key}={value}" for key, value in TINY.items()]
    return ["--config", CONFIGS / base, *(word for override in overrides for word in ("--set", override))]


@dataclass(frozen=True)
class Shop:
    """Runs that tests share and must not change."""

    fresh: Path
    evaluated: Path
    deleted: Path
    oracle: Path
    plain: Path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("cli")
    shop = Shop(*(root / name for name in ("fresh", "evaluated", "deleted", "oracle", "plain")))
    works("train", *tiny(), "--out", shop.fresh)
    shutil.copytree(shop.fresh, shop.evaluated)
    works("evaluate", shop.evaluated)
    shutil.copytree(shop.evaluated, shop.deleted)
    works("forget", shop.deleted, "--class", "3")
    works("train", *tiny(), "--out", shop.oracle, "--without", shop.deleted)
    works("train", *tiny("digits_ddpm.yaml"), "--out", shop.plain)
    return shop


@pytest.fixture
def run(shop: Shop, tmp_path: Path) -> Path:
    """A trained run of the test's own."""
    return Path(shutil.copytree(shop.fresh, tmp_path / "run"))


@pytest.fixture
def unchanged(shop: Shop, tmp_path: Path) -> Iterator[None]:
    """Hold that a test writes nothing at all."""
    root = shop.fresh.parent
    before = tree(root), tree(tmp_path)
    yield
    assert (tree(root), tree(tmp_path)) == before


def test_the_main_job(shop: Shop, tmp_path: Path) -> None:
    run = shutil.copytree(shop.deleted, tmp_path / "run")
    card = works("evaluate", run, "--oracle", shop.oracle)
    assert {measure["name"] for measure in card["measures"]} >= {"fd_to_oracle", "forgotten_class_rate_after"}
    assert works("report", run) == {"report": str(run / "report.html")}
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "exemplar-only" in html
    assert "http" + "://" not in html.replace("http://www.w3.org", "")
    assert works("sample", run, "--out", tmp_path / "images", "--count", 2)["images"] == 18
    names = {path.name for path in (tmp_path / "images").iterdir()}
    assert names == {f"{c}-0000{i}.png" for c in range(10) if c != 3 for i in range(2)} | {"sheet.png"}
    with Image.open(tmp_path / "images" / "0-00000.png") as image:
        assert (image.size, image.mode) == ((8, 8), "L")
    assert works("sample", run, "--out", tmp_path / "null", "--null", "--count", 3)["images"] == 3
    facts = works("info", run)
    assert facts["deletions"] == 1
    assert facts["evaluated"] is True
    assert facts["exemplars_per_class"]["3"] == 0
    assert "torch" in works("info")
    for verb in ("evaluate", "report", "info"):
        text = run_command(verb, run)
        assert text.exit_code == 0
        assert text.stdout.strip()


def test_every_way_to_ask_for_deletion(run: Path, tmp_path: Path) -> None:
    first = works("forget", run, "--class", "5", "--reason", "licence ended")
    assert first["level"] == "exemplar-only"
    assert (first["reason"], first["removed_per_class"]) == ("licence ended", {"5": first["removed"]})
    drawn = works("forget", run, "--fraction", 0.01, "--seed", 1)
    assert drawn["removed"] == round(0.01 * first["remaining"])
    held = load_ids(run)
    assert works("forget", run, "--id", held[0], "--id", held[1])["removed"] == 2
    (tmp_path / "list.txt").write_text(f"# two of them\nid\n{held[2]}\n{held[3].upper()}\n")
    assert works("forget", run, "--list", tmp_path / "list.txt", "--id", held[3])["removed"] == 2
    before = tree(run)
    preview = works("forget", run, "--class", "6", "--id", held[4], "--dry-run")["would_remove"]
    assert tree(run) == before
    done = works("forget", run, "--class", "6", "--id", held[4])
    assert done["removed_per_class"] == preview
    assert works("info", run)["deletions"] == 5
    assert sorted(path.name for path in (run / "receipts").iterdir()) == [f"000{n}.json" for n in range(1, 6)]


def load_ids(run: Path) -> list[str]:
    """Return ids that a run holds of classes other than 6."""
    from gen_unlearn.repro import ids_to_hex
    from gen_unlearn.runs import RunFolder

    store = RunFolder.open(run).load_exemplars()
    return ids_to_hex(store.ids[store.labels != 6])


WRONG = {
    "forget {fresh}": "nothing is asked for",
    "forget {fresh} --class eleven": "'eleven'",
    "forget {fresh} --id " + "0" * 32: "1 of 1 ids are not in the data: 0000",
    "forget {fresh} --id xyz": "32 hexadecimal digits",
    "forget {fresh} --fraction 1.5": "1.5",
    "forget {fresh} --fraction lots": "lots",
    "forget {fresh} --image {tmp}/no.png": "no.png",
    "forget {fresh} --list {tmp}/no.txt": "no.txt",
    "forget {deleted} --class 3": "no images in the data: 3",
    "forget {plain} --class 3": "class-conditional",
    "forget {tmp}/nowhere --class 3": "nowhere holds no run",
    "forget": "RUN",
    "forgot {fresh}": "forgot",
    "sample {deleted} --class 3 --out {tmp}/images": "no exemplar is left of class 3",
    "sample {fresh} --class x --out {tmp}/images": "'x'",
    "sample {fresh} --count 0 --out {tmp}/images": "count",
    "sample {fresh} --out {fresh}": "not an empty folder",
    "sample {fresh} --out {tmp}/i --set training.images=1": "fixed once a run is trained",
    "evaluate {fresh} --oracle {oracle}": "has no oracle",
    "evaluate {deleted} --oracle {fresh}": "was not trained without what was deleted",
    "evaluate {deleted} --oracle {plain}": "another recipe",
    "evaluate {tmp}": "holds no run",
    "report {fresh}": "was not evaluated yet",
    "report {deleted}": "was changed after its evaluation",
    "report {evaluated} --out {tmp}": "{tmp}",
    "train {tmp}/nowhere": "recipe.yaml",
    "train --out {tmp}/new": "--config",
    "train --config {tmp}/no.yaml --out {tmp}/new": "there is no recipe",
    "train {tiny} --out {tmp}/new --set training.imags=3": "did you mean images?",
    "train {tiny} --out {tmp}/new --set training.images=[1": "training.images",
    "train {tiny} --out {tmp}/new --set training.images": "section.key=value",
    "train {tiny} --out {tmp}/new --set training.mixed_precision=half": "mixed_precision",
    "train {tiny} --out {tmp}/new --set model.norm_num_groups=3": "norm_num_groups",
    "train {tiny} --out {tmp}/new --set model.down_block_types=[A,B]": "A",
    "train {tiny} --out {tmp}/new --set training.gradient_accumulation_steps=7": "multiple",
    "train {tiny} --out {tmp}/new --set data.image_size=9": "divisible by 2",
    "train {tiny} --out {tmp}/new --set data.source={tmp}/gone --set data.image_size=8": "gone",
    "train {tiny} --out {fresh} --set seed=1": "holds another run",
    "train {tiny} --out {tmp}/new --without {fresh}": "nothing was deleted from",
    "train {tiny} --out {tmp}/new --without {fresh}/recipe.yaml": "is not a deletion receipt",
}


@pytest.mark.parametrize(("command", "expected"), WRONG.items(), ids=WRONG)
@pytest.mark.usefixtures("unchanged")
def test_wrong_use_is_one_line_and_changes_nothing(
    shop: Shop, tmp_path: Path, command: str, expected: str
) -> None:
    places = {**vars(shop), "tmp": tmp_path}
    words: list[object] = []
    for word in command.split():
        words += tiny() if word == "{tiny}" else [word.format(**places)]
    assert expected.format(**places) in refused(*words)
