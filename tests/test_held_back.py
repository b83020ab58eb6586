"""Adapters that changed are held back from whoever asks, and the model does not know of it."""

from __future__ import annotations

import shutil
import signal
import stat
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, works
from ensemble_factory import make_ensemble_run, model_files
from run_factory import ended, fork, random_images, unchanged
from stopping import before_step, kill_this_process

from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.release import Held, HeldBack
from gen_unlearn.commands.add import add
from gen_unlearn.commands.ensemble_changes import rebuild
from gen_unlearn.commands.ensemble_recipe import recipe_of
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.verify import failures, verify
from gen_unlearn.data import IndexedImages
from gen_unlearn.forget import ForgetSet
from gen_unlearn.judging.predictions import JudgedImages
from gen_unlearn.pipelines.adapter_ensemble import AdapterEnsemblePipeline, Classified
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.runs import RunFolder

DATA = random_images(60, seed=0)
ASKED = random_images(80, seed=4)
ONE = ForgetSet(DATA.ids[:1], "GDPR request 17")
BATCH = 5


def make_run(path: Path, data: IndexedImages = DATA, *overrides: str) -> RunFolder:
    return make_ensemble_run(path, data, "ridge", (f"model.adapters.minimum_batch={BATCH}", *overrides))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run")


def routed(run: RunFolder, ids: np.ndarray) -> list[int]:
    """Return the adapters that held images are routed to, one by one."""
    rows = run.exemplar_folder().select(ids)
    return Records.of_rows(rows, recipe_of(run).shape.features)[1].ravel().tolist()


def serving(run: RunFolder) -> AdapterEnsemblePipeline:
    pipeline = RunFolder.open(run.path).load_classifier()
    assert isinstance(pipeline, AdapterEnsemblePipeline)
    return pipeline


def classified(run: RunFolder) -> Classified:
    return serving(run).classified(ASKED.all_images())


def put_back_in_time(run: RunFolder, days: float) -> None:
    """Pretend that all changes so far were made so many days ago."""
    since = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    held = HeldBack.load(run.held_back_path).adapters
    aged = HeldBack({adapter: Held(one.changes, since) for adapter, one in held.items()})
    run.held_back_path.write_text(aged.to_json(), encoding="utf-8")


def sound(run: RunFolder) -> bool:
    assert [str(check) for check in failures(verify(run))] == []
    return True


def test_an_untouched_run_holds_nothing_back(run: RunFolder) -> None:
    assert not run.held_back_path.exists()
    assert serving(run).held_back == frozenset()
    assert not serving(run).label_only


def test_after_one_deletion_its_adapters_give_the_class_alone(run: RunFolder) -> None:
    touched = set(routed(run, ONE.ids))
    forget(run, ONE)
    assert serving(run).held_back == touched
    found, everything = classified(run), serving(run).with_all_scores().classified(ASKED.all_images())
    assert serving(run).label_only
    assert np.isin(found.probabilities, (0, 1)).all()
    assert np.array_equal(found.probabilities.argmax(axis=1), everything.probabilities.argmax(axis=1))
    assert not np.isin(everything.probabilities, (0, 1)).all()
    assert not serving(run).with_all_scores().label_only


def test_enough_deletions_release_an_adapter(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", DATA, "model.adapters.minimum_batch=3")
    counts = np.zeros(12, dtype=np.int64)
    for row in range(8):
        request = ForgetSet(DATA.ids[row : row + 1], "")
        counts[routed(run, request.ids)] += 1
        forget(run, request)
        assert serving(run).held_back == set(np.flatnonzero(counts % 3).tolist())
    assert (counts >= 3).any(), "some were released on the way"
    assert serving(run).label_only


def test_many_deletions_at_once_need_no_holding_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    forget(run, ForgetSet(DATA.ids[:58], ""))
    counts = np.bincount(routed(make_run(tmp_path / "fresh"), DATA.ids[:58]), minlength=12)
    assert serving(run).held_back == set(np.flatnonzero((counts > 0) & (counts < BATCH)).tolist())
    assert (counts >= BATCH).any()


def test_one_turns_holding_back_off(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", DATA, "model.adapters.minimum_batch=1")
    forget(run, ONE)
    assert serving(run).held_back == frozenset()


def test_an_addition_counts_as_a_change(run: RunFolder) -> None:
    new = random_images(1, seed=3)
    add(run, new)
    touched = set(routed(run, new.ids))
    assert serving(run).held_back == touched
    with unchanged(run.path):
        assert add(run, new) == 0
    forget(run, ForgetSet(new.ids, ""))
    assert {one.changes for one in HeldBack.load(run.held_back_path).adapters.values()} == {2}


def test_the_deadline_releases_what_waits(run: RunFolder) -> None:
    touched = set(routed(run, ONE.ids))
    forget(run, ONE)
    pipeline = serving(run)
    put_back_in_time(run, 29.9)
    assert serving(run).held_back == touched
    put_back_in_time(run, 30.1)
    assert serving(run).held_back == frozenset()
    assert works("info", run.path)["adapters_held_back"] == 0
    pipeline.reload()
    assert pipeline.held_back == frozenset()
    second = ForgetSet(DATA.ids[1:2], "")
    later = set(routed(run, second.ids))
    forget(run, second)
    assert HeldBack.load(run.held_back_path).adapters.keys() == later
    assert {one.changes for one in HeldBack.load(run.held_back_path).adapters.values()} == {1}


def test_the_deadline_is_that_of_the_recipe(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", DATA, "model.adapters.deadline_days=2")
    forget(run, ONE)
    facts = works("info", run.path)
    assert facts["adapters_held_back"] == len(serving(run).held_back) > 0
    left = datetime.fromisoformat(facts["held_back_until"]) - datetime.now(UTC)
    assert timedelta(days=1.99) < left <= timedelta(days=2)


def test_whoever_answers_already_holds_back_once_reloaded(run: RunFolder) -> None:
    pipeline = serving(run)
    before = pipeline.probabilities(ASKED.all_images())
    forget(run, ONE)
    assert np.array_equal(pipeline.probabilities(ASKED.all_images()), before)
    pipeline.reload()
    assert pipeline.held_back
    assert np.array_equal(pipeline.probabilities(ASKED.all_images()), classified(run).probabilities)


def test_the_model_is_the_same_whatever_the_history(run: RunFolder, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other")
    forget(run, ForgetSet(DATA.ids[:2], ""))
    for row in (1, 0):
        forget(other, ForgetSet(DATA.ids[row : row + 1], ""), rebuilding="later")
    rebuild(other)
    assert run.held_back_path.read_bytes() != other.held_back_path.read_bytes()
    rest = DATA.select(np.arange(2, 60))
    assert model_files(run) == model_files(other) == model_files(make_run(tmp_path / "fresh", rest))
    assert run.state_of(run.exemplar_folder()) == other.state_of(other.exemplar_folder())


def test_the_file_is_private_and_belongs_to_no_digest(run: RunFolder) -> None:
    receipt, path = forget(run, ONE)
    assert stat.S_IMODE(run.held_back_path.stat().st_mode) == 0o600
    assert run.held_back_path.name in run.state_names
    assert run.held_back_path.parent == run.path != run.model_path
    assert not any("held_back" in name for name in run.unchanging_files())
    assert "held_back" not in path.read_text() + run.ledger_path.read_text()
    assert not [left for left in DeletionReceipt.from_file(path).left if "held_back" in left]
    assert not receipt.left
    assert works("verify", run.path, "--residue")["residue"]["left"] == []
    run.held_back_path.unlink()
    assert sound(run)


def test_a_file_of_something_else_is_not_taken_for_nothing(run: RunFolder) -> None:
    forget(run, ONE)
    run.held_back_path.write_text("{")
    second = ForgetSet(DATA.ids[1:2], "")
    for work in (partial(serving, run), partial(forget, run, second)):
        with unchanged(run.path), pytest.raises(ValueError, match=r"held-back adapters in .*remove it"):
            work()
    assert [check.name for check in failures(verify(run))] == ["adapters"]
    run.held_back_path.write_text('{"12": {"changes": 1, "since": "2026-01-01T00:00:00+00:00"}}')
    assert "names adapters that do not exist: [12]" in failures(verify(run))[0].said


def test_without_the_key_nothing_changes_and_answers_stay_held_back(run: RunFolder) -> None:
    forget(run, ONE)
    held = serving(run).held_back
    run.key_path.unlink()
    with unchanged(run.path):
        assert "cannot read the key of the run" in refused("forget", run.path, "--class", "a")
    assert serving(run).held_back == held


def test_a_judge_sees_all_scores(run: RunFolder) -> None:
    forget(run, ONE)
    none = DATA.select(np.arange(0))
    judged = JudgedImages(none, none, ASKED, (0, 1, 2)).classified_by(serving(run))["held_out"]
    assert np.array_equal(judged, serving(run).with_all_scores().probabilities(ASKED.all_images()))
    assert not np.array_equal(judged, classified(run).probabilities)


def test_a_kill_before_any_step_leaves_the_file_that_belongs_to_the_state(tmp_path: Path) -> None:
    pristine = make_run(tmp_path / "pristine")
    add(pristine, random_images(1, seed=3))
    before, touched = HeldBack.load(pristine.held_back_path).adapters, set(routed(pristine, ONE.ids))
    assert touched - before.keys()
    number, code, found = 1, -1, []
    while code:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        path = Path(shutil.copytree(pristine.path, tmp_path / "run"))
        work = partial(forget, RunFolder(path), ONE, rebuilding="later")
        code = ended(fork(partial(before_step, number, kill_this_process, work)))
        assert code in (0, -signal.SIGKILL)
        run = RunFolder.open(path)
        deleted = run.ledger.entries[-1].kind == "deleted"
        held = HeldBack.load(run.held_back_path).adapters
        assert held.keys() == (before.keys() | touched if deleted else before.keys())
        assert serving(run).held_back == held.keys()
        assert stat.S_IMODE(run.held_back_path.stat().st_mode) == 0o600
        assert sound(run)
        found.append(deleted)
        number += 3
    assert found == sorted(found), "once it is decided, it stays so"
    assert min(sum(found), len(found) - sum(found)) > 2
