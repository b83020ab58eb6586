"""Deletions from and additions to an adapter ensemble on disk, whole or cut short."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ensemble_factory import FAMILIES, make_ensemble_run, model_files
from run_factory import ended, fork, make_run, random_images, unchanged
from stopping import before_step, kill_this_process

from gen_unlearn import shards
from gen_unlearn.adapters.records import Records
from gen_unlearn.changes import ChangeFolder
from gen_unlearn.commands.add import add
from gen_unlearn.commands.ensemble_changes import rebuild
from gen_unlearn.commands.ensemble_recipe import recipe_of
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.verify import failures, verify
from gen_unlearn.data import IndexedImages
from gen_unlearn.forget import ForgetSet
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder

_BYTES_PER_IMAGE = 8 * 8 + 8 + 16 + 2 * (8 + 2)
DATA = random_images(60, seed=0)
LEAVING = DATA.select(np.array([0, 7, 21, 33]))
SOME = ForgetSet(LEAVING.ids, "GDPR request 17")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a few exemplars in a shard."""
    monkeypatch.setattr(shards, "_TARGET_BYTES", 8 * _BYTES_PER_IMAGE)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(tmp_path: Path, family: str) -> RunFolder:
    return make_ensemble_run(tmp_path / "run", DATA, family)


def fresh_files(tmp_path: Path, data: IndexedImages, family: str) -> dict[str, bytes]:
    """Return the model's files of a run that never had anything else."""
    return model_files(make_ensemble_run(tmp_path / "fresh", data, family))


def without(forget_set: ForgetSet) -> IndexedImages:
    return DATA.without(forget_set)


def joined(first: IndexedImages, second: IndexedImages) -> IndexedImages:
    return IndexedImages(
        np.concatenate([first.all_images(), second.all_images()]),
        np.concatenate([first.labels, second.labels]),
        np.concatenate([first.ids, second.ids]),
        first.class_names,
        first.names + second.names,
    )


def touched(run: RunFolder, ids: np.ndarray) -> set[int]:
    rows = run.exemplar_folder().select(ids)
    return set(Records.of_rows(rows, recipe_of(run).shape.features)[1].ravel().tolist())


def sound(run: RunFolder) -> bool:
    assert [str(check) for check in failures(verify(run))] == []
    return True


def test_a_deletion_leaves_the_files_of_a_run_that_never_had_the_images(
    run: RunFolder, tmp_path: Path, family: str
) -> None:
    assert touched(run, SOME.ids) < set(run.adapter_folder().sizes)
    receipt, path = forget(run, SOME)
    assert model_files(run) == fresh_files(tmp_path, without(SOME), family)
    assert sound(run)
    assert receipt.level == "bit-exact"
    assert receipt.artefact == "adapter ensemble"
    assert receipt.ids == tuple(ids_to_hex(SOME.ids))
    assert (receipt.removed, receipt.remaining) == (4, 56)
    assert receipt.digest_after == run.state_of(run.exemplar_folder())
    assert path.name == "0002.json"
    filed = DeletionReceipt.from_file(path)
    assert filed.level == "bit-exact"
    assert filed.reason == "GDPR request 17"
    assert (filed.removed, filed.remaining) == (receipt.removed, receipt.remaining)
    assert filed.removed_per_class == receipt.removed_per_class
    assert filed.forget_digest == receipt.sealed(run.key).forget_digest
    assert filed.sealed_with == run.key.fingerprint
    assert not filed.ids
    assert run.receipts() == [filed]
    masking = DeletionReceipt.from_file(run.receipts_path / "0001.json")
    assert masking.level == "influence-free"
    entries = run.ledger.entries
    assert [entry.kind for entry in entries] == ["trained", "deleted", "rebuilt"]
    assert [entry.level for entry in entries] == [None, "influence-free", "bit-exact"]
    assert run.ledger.deletion_of(entries[1].tombstones[0]) == entries[1]


def test_the_order_and_the_batches_of_deletions_leave_no_trace(
    run: RunFolder, tmp_path: Path, family: str
) -> None:
    for part in (SOME.ids[3:], SOME.ids[:1], SOME.ids[1:3]):
        forget(run, ForgetSet(part, ""))
    assert model_files(run) == fresh_files(tmp_path, without(SOME), family)
    assert [receipt.level for receipt in run.receipts()] == ["bit-exact"] * 3


def test_deletions_can_share_one_rebuilding(run: RunFolder, tmp_path: Path, family: str) -> None:
    first, second = ForgetSet(SOME.ids[:2], "one"), ForgetSet(SOME.ids[2:], "two")
    masked = touched(run, SOME.ids)
    before = run.adapter_folder()
    for number, part in enumerate((first, second), start=1):
        receipt, path = forget(run, part, rebuilding="later")
        assert receipt.level == "influence-free"
        assert path.name == f"{number:04d}.json"
        assert receipt.sealed(run.key) == DeletionReceipt.from_file(path)
        assert sound(run)
    waiting = run.adapter_folder()
    assert waiting.waiting == masked
    assert not masked & waiting.serving().keys()
    kept = before.files.keys() - masked
    assert {waiting.files[adapter] for adapter in kept} == {before.files[adapter] for adapter in kept}
    assert [receipt.removed for receipt in run.receipts()] == [2, 2]
    done = rebuild(run)
    assert done is not None
    receipt, path = done.receipt, done.path
    assert (done.adapters, done.completes) == (len(masked), ("0001.json", "0002.json"))
    assert receipt.level == "bit-exact"
    assert (receipt.removed, receipt.remaining, receipt.reason) == (4, 56, "one; two")
    assert receipt.sealed(run.key) == DeletionReceipt.from_file(path)
    assert run.receipts() == [DeletionReceipt.from_file(path)]
    assert model_files(run) == fresh_files(tmp_path, without(SOME), family)
    assert sound(run)
    with unchanged(run.path):
        assert rebuild(run) is None


def test_a_deletion_at_once_completes_those_that_waited(run: RunFolder, tmp_path: Path, family: str) -> None:
    forget(run, ForgetSet(SOME.ids[:2], ""), rebuilding="later")
    receipt, path = forget(run, ForgetSet(SOME.ids[2:], ""))
    assert (receipt.level, receipt.removed) == ("bit-exact", 2)
    assert DeletionReceipt.from_file(path).removed == 4
    assert model_files(run) == fresh_files(tmp_path, without(SOME), family)


@pytest.mark.parametrize("rebuilding", ["now", "later"])
def test_everything_can_be_deleted(run: RunFolder, rebuilding: str) -> None:
    forget(run, ForgetSet(DATA.ids, ""), rebuilding="now" if rebuilding == "now" else "later")
    if rebuilding == "later":
        assert run.ledger.incomplete
        assert rebuild(run) is not None
    assert run.adapter_folder().sizes == {}
    assert [path.name for path in run.adapters_path.iterdir()] == ["SHA256SUMS"]
    assert run.receipts()[-1].level == "bit-exact"
    assert sound(run)
    add(run, random_images(10, seed=5))
    assert sum(run.adapter_folder().sizes.values()) == 20
    assert sound(run)


def test_unknown_images_change_nothing(run: RunFolder) -> None:
    stranger = random_images(1, seed=77)
    with unchanged(run.path), pytest.raises(ValueError, match="1 of 5 ids are not in the store"):
        forget(run, ForgetSet(np.concatenate([SOME.ids, stranger.ids]), ""))


def test_masking_reads_no_record_but_the_leaving_ones(tmp_path: Path) -> None:
    run = make_ensemble_run(tmp_path / "run", DATA)
    folder = run.exemplar_folder()
    needed = {shard.name for shard in folder.holders(SOME.ids[:1])}
    others = [path for path in run.exemplars_path.glob("*.safetensors") if path.name not in needed]
    kept = {path: path.read_bytes() for path in others}
    assert len(kept) > 3
    for path in kept:
        path.write_bytes(b"")
    forget(run, ForgetSet(SOME.ids[:1], ""))
    for path, content in kept.items():
        path.write_bytes(content)
    assert model_files(run) == fresh_files(tmp_path, without(ForgetSet(SOME.ids[:1], "")), "ridge")


def test_an_addition_equals_a_fresh_fit(run: RunFolder, tmp_path: Path, family: str) -> None:
    new = random_images(15, seed=3)
    again = joined(new, DATA.select(np.arange(5)))
    assert add(run, again) == 15
    assert model_files(run) == fresh_files(tmp_path, joined(DATA, new), family)
    assert sound(run)
    assert [entry.kind for entry in run.ledger.entries] == ["trained", "added"]
    with unchanged(run.path):
        assert add(run, again) == 0
    forget(run, SOME)
    with unchanged(run.path), pytest.raises(ValueError, match="stay deleted"):
        add(run, LEAVING)


def test_what_waits_goes_on_waiting_when_images_are_added(
    run: RunFolder, tmp_path: Path, family: str
) -> None:
    new = random_images(15, seed=3)
    forget(run, SOME, rebuilding="later")
    waiting = run.adapter_folder().waiting
    add(run, new)
    assert run.adapter_folder().waiting == waiting
    assert waiting & touched(run, new.ids)
    assert sound(run)
    rebuild(run)
    assert model_files(run) == fresh_files(tmp_path, joined(without(SOME), new), family)
    assert sound(run)


def test_a_deletion_and_an_addition_at_once_are_both_in_force(tmp_path: Path, family: str) -> None:
    run, new = make_ensemble_run(tmp_path / "run", DATA, family), random_images(15, seed=3)
    works = [
        partial(forget, RunFolder(run.path), ForgetSet(SOME.ids[:2], "")),
        partial(forget, RunFolder(run.path), ForgetSet(SOME.ids[2:], "")),
        partial(add, RunFolder(run.path), new),
    ]
    children = [fork(work) for work in works]
    assert [ended(child) for child in children] == [0, 0, 0]
    assert model_files(run) == fresh_files(tmp_path, joined(without(SOME), new), family)
    assert {receipt.level for receipt in run.receipts()} == {"bit-exact"}
    assert sound(run)


def test_other_models_have_nothing_to_rebuild(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", DATA)
    with unchanged(run.path):
        with pytest.raises(ValueError, match=r"expected an adapter ensemble, got .*, a semi-parametric"):
            rebuild(run)
        with pytest.raises(ValueError, match="expected an adapter ensemble"):
            forget(run, SOME, rebuilding="later")


# --- cut short


def test_a_death_between_masking_and_rebuilding_leaves_the_mask(
    run: RunFolder, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = touched(run, SOME.ids)
    staged = ChangeFolder.staged
    calls: list[ChangeFolder] = []

    def dies_the_second_time(change: ChangeFolder) -> object:
        calls.append(change)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return staged(change)

    with monkeypatch.context() as patch:
        patch.setattr(ChangeFolder, "staged", dies_the_second_time)
        with pytest.raises(KeyboardInterrupt, match="the images are deleted"):
            forget(run, SOME)
    opened = RunFolder.open(run.path)
    assert opened.notice is None
    assert opened.adapter_folder().waiting == masked
    assert not masked & opened.adapter_folder().serving().keys()
    assert not opened.exemplar_folder().holds(SOME.ids).any()
    assert [receipt.level for receipt in opened.receipts()] == ["influence-free"]
    assert sound(opened)
    rebuild(opened)
    assert model_files(run) == fresh_files(tmp_path, without(SOME), family)


def phase_of(run: RunFolder, masked: set[int], old: dict[str, bytes], new: dict[str, bytes]) -> str:
    """Say which of three states a run is in; anything else is an error."""
    files = model_files(run)
    kinds = [entry.kind for entry in run.ledger.entries]
    if files == old:
        assert kinds == ["trained"]
        return "old"
    assert not run.exemplar_folder().holds(SOME.ids[:1]).any()
    if files == new:
        assert kinds == ["trained", "deleted", "rebuilt"]
        assert [receipt.level for receipt in run.receipts()] == ["bit-exact"]
        return "new"
    assert kinds == ["trained", "deleted"]
    assert run.adapter_folder().waiting == masked
    assert [receipt.level for receipt in run.receipts()] == ["influence-free"]
    return "masked"


def test_a_kill_before_any_step_leaves_the_old_state_the_mask_or_the_new_one(tmp_path: Path) -> None:
    pristine, request = make_ensemble_run(tmp_path / "pristine", DATA), ForgetSet(SOME.ids[:1], "")
    masked, old = touched(pristine, request.ids), model_files(pristine)
    new = fresh_files(tmp_path, without(request), "ridge")
    phases: list[str] = []
    number, code = 1, -1
    while code:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        path = Path(shutil.copytree(pristine.path, tmp_path / "run"))
        work = partial(forget, RunFolder(path), request)
        code = ended(fork(partial(before_step, number, kill_this_process, work)))
        assert code in (0, -signal.SIGKILL)
        run = RunFolder.open(path)
        assert sound(run)
        phases.append(phase_of(run, masked, old, new))
        if phases[-1] == "old":
            forget(run, request)
        rebuild(run)
        assert model_files(run) == new
        number += 5
    assert phases == sorted(phases, key=["old", "masked", "new"].index), "once it is decided, it stays so"
    found = Counter(phases)
    assert min(found[phase] for phase in ("old", "masked", "new")) > 2, found


# --- tampering


def test_tampered_adapters_are_noticed_before_a_change_builds_on_them(run: RunFolder) -> None:
    sums = run.adapters_path / "SHA256SUMS"
    listed = sums.read_text()
    lines = listed.splitlines(keepends=True)
    sums.write_text("".join(lines[1:]))
    path = run.adapters_path / lines[0].split()[1]
    path.rename(run.path / path.name)
    said = {check.name: check.said for check in failures(verify(run))}
    assert said.keys() == {"exemplars", "adapters"}
    assert "they and the adapters are not in the state" in said["exemplars"]
    assert "1 do not have the members that are routed to them" in said["adapters"]
    for work in (partial(forget, run, SOME), partial(add, run, random_images(3, seed=9))):
        with (
            unchanged(run.path),
            pytest.raises(ValueError, match=r"exemplars and adapters of .* are not in"),
        ):
            work()
    (run.path / path.name).rename(path)
    sums.write_text(listed)
    assert sound(run)


def test_damage_to_any_file_of_the_adapters_is_noticed(run: RunFolder) -> None:
    forget(run, SOME, rebuilding="later")
    for path in sorted(run.adapters_path.iterdir()):
        content = path.read_bytes()
        for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), content + b"0", b""):
            path.write_bytes(damaged)
            assert "adapters" in {check.name for check in failures(verify(run))}, path
        path.unlink()
        assert "adapters" in {check.name for check in failures(verify(run))}, path
        path.write_bytes(content)
    (run.adapters_path / "notes.txt").write_text("")
    assert [check.name for check in failures(verify(run))] == ["adapters"]


def test_the_receipts_of_both_changes_are_checked(run: RunFolder) -> None:
    forget(run, SOME)
    for name in ("0001.json", "0002.json"):
        path = run.receipts_path / name
        content = path.read_text()
        path.write_text(json.dumps(json.loads(content) | {"level": "bit-exact", "reason": "other"}))
        assert [check.name for check in failures(verify(run))] == ["receipts"]
        path.write_text(content)
    assert sound(run)
