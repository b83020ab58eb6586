"""What an adapter ensemble tells whoever asks it about images."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from command_line import run_command, works
from ensemble_factory import make_ensemble_run
from PIL import Image
from run_factory import random_images, unchanged

from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.verify import failures, verify
from gen_unlearn.forget import ForgetSet
from gen_unlearn.runs import RunFolder

DATA = random_images(60, seed=0)
ASKED = random_images(30, seed=4)
ONE = ForgetSet(DATA.ids[:1], "GDPR request 17")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_ensemble_run(tmp_path / "run", DATA, "ridge", ("model.adapters.minimum_batch=5",))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for row in range(30):
        Image.fromarray(ASKED.all_images()[row, ..., 0]).save(folder / f"{row:02d}.png")
    return folder


def test_predictions_tell_the_class_alone_and_until_when(run: RunFolder, pictures: Path) -> None:
    facts = works("predict", run.path, pictures)
    assert (facts["label_only"], facts["notes"]) == (False, [])
    forget(run, ONE)
    facts = works("predict", run.path, pictures, "--out", pictures.parent / "out")
    assert facts["label_only"] is True
    assert {(one["probability"], *one["probabilities"]) for one in facts["predictions"]} == {(None,)}
    assert {one["class"] for one in facts["predictions"]} <= set(run.manifest.class_names)
    (note,) = [note for note in facts["notes"] if note.startswith("label-only: ")]
    assert f"{works('info', run.path)['held_back_until']} at the latest" in note
    with (pictures.parent / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][3:] == list(run.manifest.class_names)
    assert all(row[1] and not any(row[2:]) for row in rows[1:])
    told = run_command("predict", run.path, pictures).stdout.splitlines()[:30]
    assert not any("%" in line for line in told)


@pytest.mark.parametrize("setting", ["minimum_batch=1", "deadline_days=0"])
def test_an_operator_may_see_probabilities_all_the_same(setting: str, run: RunFolder, pictures: Path) -> None:
    forget(run, ONE)
    override = f"model.adapters.{setting}"
    with unchanged(run.path):
        facts = works("predict", run.path, pictures, "--set", override)
        assert works("info", run.path, "--set", override)["adapters_held_back"] == 0
    assert (facts["label_only"], facts["notes"]) == (False, [])
    assert all(0 < one["probability"] < 1 for one in facts["predictions"])
    assert works("info", run.path)["adapters_held_back"] > 0
    assert works("predict", run.path, pictures)["label_only"] is True
    forget(run.with_overrides([override]), ForgetSet(DATA.ids[1:2], ""))
    assert works("info", run.path)["adapters_held_back"] == 0
    assert failures(verify(run)) == []


def test_adapters_that_wait_are_counted(run: RunFolder, pictures: Path) -> None:
    forget(run, ONE, rebuilding="later")
    waiting = works("info", run.path)["adapters_waiting"]
    facts = works("predict", run.path, pictures)
    said = f"{waiting} of 12 adapters wait to be rebuilt and do not answer"
    assert f"{said}: gen-unlearn forget {run.path} --rebuild" in facts["notes"]
    rest = ForgetSet(run.exemplar_folder().ids[:50], "")
    forget(run, rest, rebuilding="later")
    result = run_command("predict", run.path, pictures, "--set", "model.adapters.minimum_batch=1")
    silent = [line for line in result.stdout.splitlines() if "no adapter answers" in line]
    assert silent
    assert not any("%" in line for line in silent)
    works("forget", run.path, "--rebuild")
    assert not [note for note in works("predict", run.path, pictures)["notes"] if "--rebuild" in note]


def test_asking_for_voters_is_answered_by_a_note(run: RunFolder, pictures: Path) -> None:
    (note,) = works("predict", run.path, pictures, "--voters", "8")["notes"]
    assert note == "the adapters of an ensemble answer, not exemplars; --voters is ignored"
