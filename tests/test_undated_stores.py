"""Modification times of a run's stores do not tell what a deletion touched, nor when."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ensemble_factory import FAMILIES, make_ensemble_run
from run_factory import make_run, random_images

from gen_unlearn import shards
from gen_unlearn.atomic import UNDATED
from gen_unlearn.commands.add import add
from gen_unlearn.commands.ensemble_changes import rebuild
from gen_unlearn.commands.forget import forget
from gen_unlearn.forget import ForgetSet
from gen_unlearn.runs import RunFolder

DATA = random_images(60, seed=0)
FIRST, SECOND = (ForgetSet(DATA.ids[rows], "") for rows in (slice(0, 2), slice(9, 10)))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a few exemplars in a shard."""
    monkeypatch.setattr(shards, "_TARGET_BYTES", 8 * (8 * 8 + 8 + 16 + 2 * (8 + 2)))


def times(run: RunFolder) -> dict[str, int]:
    """Return the modification time of every file of the stores."""
    stores = [run.model_path / "exemplars", run.model_path / "adapters"]
    files = [path for store in stores if store.is_dir() for path in store.iterdir()]
    return {f"{path.parent.name}/{path.name}": path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("family", FAMILIES)
def test_after_changes_they_are_those_of_a_fresh_ensemble(tmp_path: Path, family: str) -> None:
    run = make_ensemble_run(tmp_path / "run", DATA, family)
    trained = times(run)
    assert len(trained) > 10
    assert set(trained.values()) == {UNDATED * 10**9}
    forget(run, FIRST)
    assert set(times(run).values()) == {UNDATED * 10**9}
    forget(run, SECOND, rebuilding="later")
    assert set(times(run).values()) == {UNDATED * 10**9}
    rebuild(run)
    left = DATA.without(FIRST).without(SECOND)
    assert times(run) == times(make_ensemble_run(tmp_path / "fresh", left, family))
    add(run, random_images(3, seed=5))
    assert times(run).keys() != times(make_ensemble_run(tmp_path / "again", left, family)).keys()
    assert set(times(run).values()) == {UNDATED * 10**9}


def test_after_changes_they_are_those_of_a_fresh_generator(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", DATA)
    forget(run, FIRST)
    assert times(run) == times(make_run(tmp_path / "fresh", DATA.without(FIRST)))
    assert len(times(run)) > 2
    assert set(times(run).values()) == {UNDATED * 10**9}


def test_other_files_say_when_they_were_written(tmp_path: Path) -> None:
    started = time.time()
    run = make_run(tmp_path / "run", DATA)
    assert run.manifest_path.stat().st_mtime > started - 60
