"""What people are told of adapters that wait or are held back, before and after changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run_command, works
from ensemble_factory import make_ensemble_run
from PIL import Image
from run_factory import make_run, random_images, unchanged

from gen_unlearn.adapters import determinism
from gen_unlearn.adapters.family import HeadShape
from gen_unlearn.adapters.promise import promised_level
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.atomic import UNDATED
from gen_unlearn.commands.ensemble_notes import touched_adapters
from gen_unlearn.commands.verify import Check
from gen_unlearn.commands.verify_ensemble import save_as_masked
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder

DATA = random_images(60, seed=0)
NAMES = ids_to_hex(DATA.ids)
RELEASED = ("model.adapters.minimum_batch=1",)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_ensemble_run(tmp_path / "run", DATA)


@pytest.fixture
def open_run(tmp_path: Path) -> RunFolder:
    """A run that holds no adapter back."""
    return make_ensemble_run(tmp_path / "run", DATA, overrides=RELEASED)


def touched(run: RunFolder, *rows: int) -> int:
    return len(touched_adapters(run, DATA.ids[list(rows)]))


def forget(run: RunFolder, *rows: int, options: tuple[str, ...] = ()) -> list[str]:
    words = [word for row in rows for word in ("--id", NAMES[row])]
    notes = works("forget", run.path, *words, *options)["notes"]
    assert isinstance(notes, list)
    return notes


def test_a_deletion_says_what_is_held_back_and_until_when(run: RunFolder) -> None:
    count = touched(run, 0, 7)
    (note,) = forget(run, 0, 7)
    release = run.classifier_config.model.adapters.release
    until = run.held_back(release).until(release)
    assert note == (
        f"{count} adapters are held back until {until} at the latest: predictions tell classes without "
        f"probabilities; --set model.adapters.minimum_batch=1 on predict gives them anyway"
    )
    printed = run_command("forget", run.path, "--id", NAMES[9]).stdout
    assert "note        " in printed
    assert "adapters are held back until " in printed


def test_where_none_is_held_back_nothing_is_said(open_run: RunFolder) -> None:
    assert forget(open_run, 0) == []
    assert "note" not in run_command("forget", open_run.path, "--id", NAMES[1]).stdout


def test_deferring_counts_what_is_masked_and_an_addition_repeats_it(run: RunFolder, tmp_path: Path) -> None:
    count = touched(run, 0, 7)
    masked, held = forget(run, 0, 7, options=("--defer",))
    remedy = f"to rebuild them: gen-unlearn forget {run.path} --rebuild"
    assert masked == f"{count} adapters are masked and do not answer; {remedy}"
    assert held.startswith(f"{count} adapters are held back until")
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(tmp_path / "new.png")
    added = run_command("add", run.path, tmp_path / "new.png", "--class", DATA.class_names[0]).stdout
    assert f"note    {masked}" in added
    assert "held back until" in added
    again = works("add", run.path, tmp_path / "new.png", "--class", DATA.class_names[0])
    assert again["added"] == 0
    assert again["notes"][0] == masked


def test_a_rebuilding_counts_no_image_a_second_time(open_run: RunFolder) -> None:
    count = touched(open_run, 0, 7)
    for row in (0, 7):
        forget(open_run, row, options=("--defer",))
    with unchanged(open_run.path):
        would = works("forget", open_run.path, "--rebuild", "--dry-run")
        said = run_command("forget", open_run.path, "--rebuild", "--dry-run").stdout
    assert would == {"would_rebuild": count, "would_complete": ["0001.json", "0002.json"]}
    assert said == f"would rebuild {count} adapters, and complete receipts 0001, 0002\n"
    printed = run_command("forget", open_run.path, "--rebuild").stdout
    assert printed.startswith(f"rebuilt     {count} adapters; completes receipts 0001, 0002\nlevel ")
    assert "deleted     " not in printed
    assert works("forget", open_run.path, "--rebuild", "--dry-run")["would_rebuild"] == 0
    forget(open_run, 9, options=("--defer",))
    facts = works("forget", open_run.path, "--rebuild")
    assert (facts["rebuilt"], facts["completes"]) == (2, ["0004.json"])
    assert not {"removed", "removed_per_class", "ids"} & facts.keys()


def test_a_deletion_at_once_says_that_it_completes_the_others(open_run: RunFolder) -> None:
    forget(open_run, 0, options=("--defer",))
    assert forget(open_run, 7) == ["this also rebuilt what waited, and completes receipt 0001"]
    assert forget(open_run, 9) == []


def test_a_preview_counts_adapters(open_run: RunFolder, tmp_path: Path) -> None:
    def preview(row: int, *options: str) -> tuple[str, int]:
        words = (
            "forget",
            open_run.path,
            "--id",
            NAMES[row],
            "--dry-run",
            "--out",
            tmp_path / "out",
            *options,
        )
        return run_command(*words).stdout, works(*words)["would_touch_adapters"]

    count = touched(open_run, 0)
    with unchanged(open_run.path):
        said, number = preview(0)
        assert number == count
        assert f"would mask and rebuild {count} adapters\n" in said
        said, number = preview(0, "--defer")
        assert number == count
        assert f"would mask {count} adapters until they are rebuilt\n" in said
    others = len(touched_adapters(open_run, DATA.ids[:1]) - touched_adapters(open_run, DATA.ids[7:8]))
    forget(open_run, 0, options=("--defer",))
    assert others
    assert f"adapters, and rebuild {others} that wait\n" in preview(7)[0]


def test_a_preview_of_another_model_has_no_adapters(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", DATA)
    words = ("forget", run.path, "--id", NAMES[0], "--dry-run", "--out", tmp_path / "out")
    assert "would_touch_adapters" not in works(*words)
    assert works("forget", run.path, "--id", NAMES[0])["notes"] == []
    for option in (("--rebuild", "--dry-run"), (*words[2:], "--defer")):
        assert "expected an adapter ensemble" in refused("forget", run.path, *option)


def test_a_class_that_was_deleted_before_is_named_so(open_run: RunFolder) -> None:
    first, second = DATA.class_names[:2]
    works("forget", open_run.path, "--class", first)
    with unchanged(open_run.path):
        said = refused("forget", open_run.path, "--class", first)
    assert f"1 of 1 classes are deleted before: {first}; nothing was deleted" in said
    facts = works("forget", open_run.path, "--class", first, "--class", second)
    assert set(facts["removed_per_class"]) == {second}
    assert facts["notes"][0] == f"1 of 2 classes are deleted before: {first}"
    assert facts["reason"] == f"class {second}"


def test_what_is_skipped_does_not_read_as_fine() -> None:
    assert str(Check("replay", detail="not done: so", skipped=True)) == "skipped replay: not done: so"
    assert str(Check("replay", detail="so")) == "ok      replay: so"
    assert str(Check("replay", problem="so")) == "FAILED  replay: so"


def test_the_promise_is_tried_out_with_the_sizes_of_the_adapters(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[HeadShape] = []

    def passes(_: object, shape: HeadShape, __: object) -> bool:
        shapes.append(shape)
        return shape.features != 9

    monkeypatch.setattr(determinism, "_passes", passes)
    family = RidgeHeads()
    assert promised_level("public-samples", family, False, shape=HeadShape(9, 5)) == "distributional"
    assert promised_level("public-samples", family, False) == "bit-exact"
    ensemble = run.load_ensemble()
    shapes.clear()
    assert ensemble.level == "bit-exact"
    assert shapes == [ensemble.recipe.shape]


def test_a_replayed_folder_tells_no_time(run: RunFolder, tmp_path: Path) -> None:
    folder, family = run.adapter_folder(), run.classifier_config.model.adapters.heads
    states = {adapter: state for adapter in folder.files if (state := folder.state(adapter)) is not None}
    save_as_masked(family, states, folder.sizes, frozenset(), tmp_path / "again")
    assert {path.stat().st_mtime for path in (tmp_path / "again").iterdir()} == {UNDATED}
