"""Adapters that were fit with other software or on another processor: what is promised, and what is said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy
from command_line import works
from ensemble_factory import make_ensemble_run, model_files
from run_factory import random_images

from gen_unlearn.adapters.family import WEIGHTS, AdapterState
from gen_unlearn.adapters.promise import environment_digest
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.commands.add import add
from gen_unlearn.commands.ensemble_changes import rebuild
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.verify_ensemble import replay_adapters
from gen_unlearn.forget import ForgetSet
from gen_unlearn.ledger import Ledger
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder

DATA = random_images(60, seed=0)
FIRST, SECOND = ForgetSet(DATA.ids[:2], ""), ForgetSet(DATA.ids[2:4], "")


@contextmanager
def elsewhere() -> Iterator[None]:
    """Use another scipy, which solves to other last bits."""
    complete = RidgeHeads.complete

    def other_bits(heads: RidgeHeads, state: AdapterState) -> AdapterState:
        completed = complete(heads, state)
        return {**completed, WEIGHTS: np.nextafter(completed[WEIGHTS], np.inf)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scipy, "__version__", "0.1")
        patch.setattr(RidgeHeads, "complete", other_bits)
        yield


def test_what_is_made_from_sums_is_completed_again_after_a_move(tmp_path: Path) -> None:
    run = make_ensemble_run(tmp_path / "run", DATA)
    assert run.environment_note == ""
    with elsewhere():
        assert works("info", run.path)["level"] == "distributional"
        receipt, _ = forget(run, FIRST)
        assert receipt.level == works("info", run.path)["level"] == "bit-exact"
        assert run.ledger.environments == (environment_digest(),)
        assert "SHA-256 equal" in replay_adapters(run)
    assert run.ledger.environments != (environment_digest(),)
    assert works("info", run.path)["level"] == "distributional"
    assert (
        f"; adapters were fit with other software or on another processor: scipy 0.1 -> {scipy.__version__}"
        in (run.environment_note)
    )
    with pytest.raises(ValueError, match=r"files differ: .*scipy 0\.1 ->"):
        replay_adapters(run)
    receipt, _ = forget(run, SECOND)
    assert receipt.level == "bit-exact"
    left = DATA.without(ForgetSet(DATA.ids[:4], ""))
    assert model_files(run) == model_files(make_ensemble_run(tmp_path / "fresh", left))
    assert run.environment_note == ""


def test_an_addition_after_a_move_completes_all_again(tmp_path: Path) -> None:
    run = make_ensemble_run(tmp_path / "run", DATA)
    forget(run, FIRST, rebuilding="later")
    with elsewhere():
        add(run, random_images(3, seed=9))
        assert run.ledger.environments == (environment_digest(),)
        assert run.adapter_folder().waiting
        assert "SHA-256 equal" in replay_adapters(run)
    done = rebuild(run)
    assert done is not None
    assert done.receipt.level == "bit-exact"
    assert "SHA-256 equal" in replay_adapters(run)


def test_trained_heads_of_two_environments_are_equal_in_law_only(tmp_path: Path) -> None:
    run = make_ensemble_run(tmp_path / "run", DATA, "sgd")
    forget(run, FIRST, rebuilding="later")
    assert run.ledger.environments == (environment_digest(),)
    with elsewhere():
        facts = works("forget", run.path, "--id", ids_to_hex(SECOND.ids)[0])
    assert facts["level"] == "distributional"
    assert "1 other environments" in facts["versions"]["adapters"]
    assert any("adapters were fit with other software" in note for note in facts["notes"])
    assert len(run.ledger.environments) == 2
    assert "scipy 0.1 ->" in run.environment_note
    receipt, path = forget(run, ForgetSet(SECOND.ids[1:], ""))
    assert receipt.level == DeletionReceipt.from_file(path).level == "distributional"
    assert works("info", run.path)["level"] == "distributional"
    receipt, _ = forget(run, ForgetSet(run.exemplar_folder().ids, ""))
    assert receipt.level == "bit-exact"


@pytest.mark.parametrize(("family", "level"), [("ridge", "bit-exact"), ("sgd", "distributional")])
def test_a_ledger_that_does_not_say_where_promises_less(tmp_path: Path, family: str, level: str) -> None:
    run = make_ensemble_run(tmp_path / "run", DATA, family)
    state, files = run.state_of(run.exemplar_folder()), run.unchanging_files()
    run.ledger_path.unlink()
    Ledger.start(run.ledger_path, run.key, state, len(DATA), files)
    assert "environments" not in run.ledger_path.read_text()
    assert "not noted where" in run.environment_note
    assert forget(run, FIRST)[0].level == level


def test_environments_cannot_be_edited(tmp_path: Path) -> None:
    run = make_ensemble_run(tmp_path / "run", DATA)
    (entry,) = run.ledger.entries
    run.ledger_path.write_bytes(replace(entry, environments=("0" * 64,)).to_line())
    with pytest.raises(ValueError, match="line 1 was changed"):
        _ = run.ledger


@pytest.mark.slow
def test_another_kind_of_processor_is_another_environment(tmp_path: Path) -> None:
    """The oldest kernels of OpenBLAS run on every x86-64 processor."""
    run = make_ensemble_run(tmp_path / "run", DATA)
    command = [sys.executable, "-m", "gen_unlearn", "forget", str(run.path), "--id", ids_to_hex(FIRST.ids)[0]]
    subprocess.run(
        command, check=True, env={**os.environ, "OPENBLAS_CORETYPE": "Prescott"}, capture_output=True
    )
    opened = RunFolder.open(run.path)
    if opened.ledger.environments == (environment_digest(),):
        pytest.skip("this BLAS has one kind of kernels")
    assert "on another processor: blas " in opened.environment_note
    assert forget(opened, SECOND)[0].level == "bit-exact"
    assert "SHA-256 equal" in replay_adapters(opened)


@pytest.mark.parametrize(("family", "level"), [("ridge", "bit-exact"), ("sgd", "distributional")])
def test_in_memory_no_more_is_promised_than_on_disk(tmp_path: Path, family: str, level: str) -> None:
    run = make_ensemble_run(tmp_path / "run", DATA, family)
    assert run.load_ensemble().level == "bit-exact"
    with elsewhere():
        ensemble = run.load_ensemble()
        assert ensemble.level == "distributional"
        assert ensemble.delete(FIRST).level == level
        assert level == "distributional" or ensemble.replay() == []
