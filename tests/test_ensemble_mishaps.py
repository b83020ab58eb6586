"""What goes wrong around an adapter ensemble on disk: failures half-way, tampering, changes in between."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refused, run_command, works
from ensemble_factory import make_ensemble_run, model_files
from run_factory import INTERRUPTED, random_images, unchanged
from safetensors.numpy import load_file, save_file

from gen_unlearn.adapters.adapter_folder import AdapterFolder
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.changes import RunBusyError
from gen_unlearn.commands import ensemble_changes, verify_ensemble
from gen_unlearn.commands import forget as forgetting
from gen_unlearn.commands.add import add
from gen_unlearn.commands.ensemble_changes import rebuild
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.verify import failures, replay, verify
from gen_unlearn.commands.verify_ensemble import replay_adapters, replay_sample
from gen_unlearn.forget import ForgetSet
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder

DATA = random_images(60, seed=0)
FIRST, SECOND = ForgetSet(DATA.ids[:2], "one"), ForgetSet(DATA.ids[2:5], "two")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_ensemble_run(tmp_path / "run", DATA)


# --- one deletion, two changes


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), np.linalg.LinAlgError("not definite"), MemoryError()]
)
def test_a_rebuilding_that_fails_leaves_no_doubt_that_the_images_are_gone(
    run: RunFolder, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> object:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(RidgeHeads, "complete", fails)
        said = refused("forget", run.path, "--id", ids_to_hex(FIRST.ids)[0])
    assert f"the images are deleted, influence-free receipt {run.receipts_path / '0001.json'}" in said
    assert f"{len(run.adapter_folder().waiting)} adapters are masked" in said
    assert (str(error) or "MemoryError") in said
    assert f"gen-unlearn forget {run.path} --rebuild" in said
    assert "nothing was changed" not in said
    assert works("forget", run.path, "--rebuild")["level"] == "bit-exact"


def test_ctrl_c_during_the_rebuilding_says_what_is_done(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RidgeHeads, "complete", interrupted)
        result = run_command("forget", run.path, "--id", ids_to_hex(FIRST.ids)[0])
    assert result.exit_code == INTERRUPTED
    assert result.stderr.startswith("interrupted: the images are deleted, influence-free receipt")
    assert works("forget", run.path, "--rebuild")["level"] == "bit-exact"


def test_before_the_images_are_gone_nothing_else_is_said(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(forgetting, "withdraw", fails)
    with unchanged(run.path):
        assert "are deleted" not in refused("forget", run.path, "--id", ids_to_hex(FIRST.ids)[0])


def test_no_other_change_comes_between_masking_and_rebuilding(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, between = forgetting.complete, []

    def looks(*arguments: Any) -> object:
        with pytest.raises(RunBusyError), run.change.locked(wait=0):
            pass
        between.append(run.adapter_folder().waiting)
        return complete(*arguments)

    monkeypatch.setattr(forgetting, "complete", looks)
    receipt, path = forget(run, FIRST)
    assert len(between) == 1
    assert between[0]
    filed = DeletionReceipt.from_file(path)
    assert (filed.level, filed.removed, filed.versions) == (receipt.level, receipt.removed, receipt.versions)


# --- receipts


@pytest.mark.parametrize("missing", [True, False])
def test_a_receipt_that_was_tampered_with_decides_nothing(run: RunFolder, missing: bool) -> None:
    forget(run, FIRST, rebuilding="later")
    forget(run, SECOND, rebuilding="later")
    path = run.receipts_path / "0001.json"
    if missing:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"removed": 77, "reason": "forged"}))
    done = rebuild(run)
    assert done is not None
    receipt = done.receipt
    assert (receipt.removed, run.ledger.entries[-1].images) == (5, 5)
    assert sum(receipt.removed_per_class.values()) == 3
    assert receipt.reason == "two; classes and reason unknown: receipt 0001.json is missing or was changed"
    assert not run.adapter_folder().waiting
    assert [check.name for check in failures(verify(run))] == ["receipts"]


# --- reading while it changes


def during(work: Callable[[], object], original: Callable[..., Any], after: bool) -> Callable[..., Any]:
    """Return a function that does something else the first time, before or after what it is there for."""
    done: list[object] = []

    def wrapped(*arguments: Any) -> Any:
        if not done and not after:
            done.append(work())
        found = original(*arguments)
        if not done:
            done.append(work())
        return found

    return wrapped


def test_records_and_adapters_of_two_states_are_not_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion and an addition in between leave all numbers of members as they were."""
    one = ("model.adapters.count=1", "model.adapters.neighbours=1")
    run = make_ensemble_run(tmp_path / "run", DATA, overrides=one)

    def change() -> None:
        forget(run, ForgetSet(DATA.ids[:1], ""))
        add(run, random_images(1, seed=5))

    monkeypatch.setattr(AdapterFolder, "read", during(change, AdapterFolder.read, after=False))
    ensemble = run.load_ensemble()
    assert not (ensemble.ids == DATA.ids[0]).all(axis=1).any()
    assert ensemble.replay() == []
    assert len(ensemble) == len(DATA)


def test_states_that_do_not_belong_together_are_not_loaded(run: RunFolder, tmp_path: Path) -> None:
    other = make_ensemble_run(tmp_path / "other", DATA, overrides=("model.adapters.ridge.penalty=1",))
    shutil.rmtree(run.adapters_path)
    shutil.copytree(other.adapters_path, run.adapters_path)
    with pytest.raises(ValueError, match="not in the state that the ledger's last entry describes"):
        run.load_ensemble()


def test_a_change_during_a_replay_is_no_failure(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = during(lambda: forget(run, FIRST), verify_ensemble.fit_members, after=True)
    monkeypatch.setattr(verify_ensemble, "fit_members", fit)
    (check,) = replay(run, sample=1000)
    assert check.passed, str(check)
    assert len(run.ledger.lines) == 3


def test_a_run_that_never_rests_is_said_to_change(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    original, rows = verify_ensemble.fit_members, iter(DATA.ids)

    def restless(*arguments: Any) -> Any:
        forget(run, ForgetSet(next(rows)[None], ""), rebuilding="later")
        return original(*arguments)

    monkeypatch.setattr(verify_ensemble, "fit_members", restless)
    (check,) = replay(run, sample=1)
    assert "the run changed 5 times while it was replayed" in check.problem


# --- replay, links, planted files


def test_a_replay_compares_bytes_and_not_lists(run: RunFolder) -> None:
    first, second = sorted(run.adapters_path.glob("*.safetensors"))[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(ValueError, match=r"2 of .* files differ"):
        replay_adapters(run)
    with pytest.raises(ValueError, match=r"2 of .* files differ"):
        replay_sample(run, 1000)


def test_a_sample_says_how_many_it_could_draw(run: RunFolder) -> None:
    count = len(run.adapter_folder().files)
    assert replay_sample(run, 1000) == replay_sample(run, count) == f"all {count} files, SHA-256 equal"
    assert f"1 - (1 - f)^{count - 1}" in replay_sample(run, count - 1)
    forget(run, ForgetSet(DATA.ids, ""))
    assert replay_sample(run, 3) == "no adapter has members: nothing to replay"


@pytest.mark.parametrize("store", ["adapters", "exemplars"])
def test_a_link_that_leads_out_of_the_run_is_refused(run: RunFolder, tmp_path: Path, store: str) -> None:
    file = min((run.model_path / store).glob("*.safetensors"))
    target = tmp_path / "elsewhere.safetensors"
    shutil.move(file, target)
    file.symlink_to(target)
    (check,) = failures(verify(run))
    assert check.name == store
    expected = f"expected plain files in the run, got {file}, a link to {target}"
    assert expected in check.said
    with unchanged(tmp_path):
        assert expected in refused("forget", run.path, "--id", ids_to_hex(FIRST.ids)[0])


def test_keys_come_from_the_weights_of_the_training_alone(run: RunFolder, tmp_path: Path) -> None:
    (weights,) = run.classifier_path.glob("*.safetensors")
    tensors = load_file(weights)
    planted = tensors | {"key_codes": tensors["key_codes"][::-1].copy()}
    save_file(planted, weights.with_name("a.safetensors"))
    assert np.array_equal(ensemble_changes.recipe_of(run).keys.codes, tensors["key_codes"])
    forget(run, FIRST)
    fresh = make_ensemble_run(tmp_path / "fresh", DATA.without(FIRST))
    weights.with_name("a.safetensors").unlink()
    assert model_files(run) == model_files(fresh)
    save_file(planted, weights)
    with (
        unchanged(run.path),
        pytest.raises(ValueError, match=f"{weights.name} was changed since the training"),
    ):
        forget(run, SECOND)
