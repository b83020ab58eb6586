"""Delete images from a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from gen_unlearn.changes import ADAPTERS, EXEMPLARS, LOCK_SECONDS
from gen_unlearn.commands.derived import remaining, removable
from gen_unlearn.commands.ensemble_changes import Rebuilding, complete, withdraw
from gen_unlearn.commands.ensemble_recipe import require_ensemble
from gen_unlearn.commands.filing import filed
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.search import Selection
from gen_unlearn.commit_record import StagedChange
from gen_unlearn.exemplar_changes import StoreChange, stage_deletion
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import class_index, first_few
from gen_unlearn.promises import promise_of_recipe
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import ids_to_hex, software_versions
from gen_unlearn.run_records import stores_digest
from gen_unlearn.runs import RunFolder


def find(run: RunFolder, request: ForgetRequest) -> Selection:
    """Find what is asked for among the exemplars; classes that were deleted before are left out with a note.

    Raises:
        ValueError: nothing is asked for, or nothing else, or something that is not there.
    """
    gone = list(_deleted_classes(run, request))
    if not gone:
        return request.resolve(run)
    names = run.exemplar_folder().class_names
    left = [name for name in request.classes if names[class_index(names, name)] not in gone]
    note = f"{len(gone)} of {len(request.classes)} classes are deleted before: {first_few(gone)}"
    others = (left, request.images, request.ids, request.lists, request.like)
    if not any(others) and request.fraction is None:
        raise ValueError(f"{note}; nothing was deleted")
    found = replace(request, classes=left).resolve(run)
    return replace(found, notes=(note, *found.notes))


def _deleted_classes(run: RunFolder, request: ForgetRequest) -> Iterator[str]:
    """Yield the names of asked classes that have no exemplars any more, as some receipt says."""
    if not request.classes:
        return
    folder = run.exemplar_folder()
    names, labels = folder.class_names, set(folder.labels.tolist())
    asked = {class_index(names, name) for name in request.classes}
    empty = sorted(asked - labels)
    if not empty:
        return
    receipts = (run.filed_receipt(entry) for entry in run.ledger.standing)
    deleted = {name for receipt in receipts if receipt is not None for name in receipt.removed_per_class}
    yield from (names[label] for label in empty if names[label] in deleted)


def forget(
    run: RunFolder,
    request: ForgetSet,
    keep_comparison: bool = False,
    wait: float = LOCK_SECONDS,
    rebuilding: Rebuilding = "now",
) -> tuple[DeletionReceipt, Path]:
    """Delete exemplars of a run, on disk, and file a receipt; return it, not sealed, with the sealed file.

    Neither the network nor the other exemplars are loaded. What was derived from the images and can be made
    again is removed too. The adapters of an ensemble that the images were routed to are masked and then
    rebuilt, which files a second receipt, see `gen_unlearn.commands.ensemble_changes`.

    Args:
        run: the run.
        request: what to delete.
        keep_comparison: keep samples and judge, to compare the model before and after.
        wait: seconds to wait for another change of the run.
        rebuilding: of an ensemble: ``"later"`` leaves the adapters masked until the next deletion without it,
            or `gen_unlearn.commands.ensemble_changes.rebuild`; the receipt is that of the masking.

    Raises:
        ValueError: an image is not among the exemplars, another process is changing the run, or it is no
            ensemble whose rebuilding could wait; or rebuilding failed: the message says that the images are
            gone and how to go on.
    """
    if rebuilding == "later":
        require_ensemble(run)
    with run.change.locked(wait):
        if not run.is_ensemble or rebuilding == "later":
            return _delete(run, request, keep_comparison)
        return _delete_and_rebuild(run, request, keep_comparison)


def _delete_and_rebuild(
    run: RunFolder, request: ForgetSet, keep_comparison: bool
) -> tuple[DeletionReceipt, Path]:
    """Make both changes of a deletion under one lock, so that no other change comes in between."""
    run.change.recover()
    before = len(run.ledger.lines)
    try:
        receipt, _ = _delete(run, request, keep_comparison)
        return complete(run, receipt)
    except (ValueError, OSError, ArithmeticError, MemoryError, RuntimeError, KeyboardInterrupt) as error:
        since = run.ledger.entries[before:]
        if [entry.kind for entry in since] != ["deleted"]:
            raise
        path, waiting = run.receipts_path / str(since[0].receipt), len(run.adapter_folder().waiting)
        said = (
            f"the images are deleted, influence-free receipt {path}; {waiting} adapters are masked, as "
            f"rebuilding them failed: {str(error) or type(error).__name__}; to rebuild them: "
            f"gen-unlearn forget {run.path} --rebuild"
        )
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(said) from error
        raise ValueError(said) from error


def _delete(run: RunFolder, request: ForgetSet, keep_comparison: bool) -> tuple[DeletionReceipt, Path]:
    """Delete exemplars, and mask adapters; the caller holds the lock."""
    with run.change.staged() as prepared:
        started = time.perf_counter()
        folder, ledger = run.exemplar_folder(), run.ledger
        run.require_own_state(folder, ledger)
        change = stage_deletion(folder, request.ids, prepared.staging(EXEMPLARS))
        changes: dict[str, StagedChange] = {EXEMPLARS: change}
        digest, private = change.digest, dict[str, bytes]()
        if run.is_ensemble:
            masked, private, _ = withdraw(run, folder, request.ids, prepared)
            changes[ADAPTERS] = masked
            digest = stores_digest(change.digest, masked.digest)
        purged = removable(run, keep_comparison)
        receipt = _receipt(run, request, folder, change, digest, purged, time.perf_counter() - started)
        tombstones = tuple(sorted(run.key.tombstones(request.ids)))
        name, text, entry = filed("deleted", receipt, ledger, tombstones)
        prepared.commit(changes, entry, ledger.size, text, purged, private)
    return receipt, run.receipts_path / name


def _receipt(
    run: RunFolder,
    request: ForgetSet,
    folder: ExemplarFolder,
    change: StoreChange,
    digest: str,
    purged: tuple[str, ...],
    seconds: float,
) -> DeletionReceipt:
    artefact, level = promise_of_recipe(run.recipe)
    names = folder.class_names
    return DeletionReceipt(
        artefact=artefact,
        level=level,
        reason=request.reason,
        ids=tuple(ids_to_hex(request.ids)),
        forget_digest=request.digest,
        removed=sum(change.changed_per_label.values()),
        removed_per_class={names[label]: count for label, count in change.changed_per_label.items()},
        remaining=change.count,
        digest_before=run.state_of(folder),
        digest_after=digest,
        seconds=seconds,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=software_versions(),
        purged=purged,
        left=remaining(run, purged),
    )
