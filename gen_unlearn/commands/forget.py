"""Delete images from a run."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from gen_unlearn.changes import ADAPTERS, EXEMPLARS, LOCK_SECONDS
from gen_unlearn.commands.derived import remaining, removable
from gen_unlearn.commands.ensemble_changes import Rebuilding, complete, require_ensemble, withdraw
from gen_unlearn.commit_record import StagedChange
from gen_unlearn.exemplar_changes import StoreChange, stage_deletion
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.forget import ForgetSet
from gen_unlearn.promises import promise_of_recipe
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import ids_to_hex, software_versions
from gen_unlearn.run_records import stores_digest
from gen_unlearn.runs import RunFolder
from gen_unlearn.shards import sha256


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
            ensemble whose rebuilding could wait.
    """
    if rebuilding == "later":
        require_ensemble(run)
    receipt, path = _delete(run, request, keep_comparison, wait)
    return complete(run, receipt, wait) if run.is_ensemble and rebuilding == "now" else (receipt, path)


def _delete(
    run: RunFolder, request: ForgetSet, keep_comparison: bool, wait: float
) -> tuple[DeletionReceipt, Path]:
    with run.change.prepared(wait) as prepared:
        started = time.perf_counter()
        folder, ledger = run.exemplar_folder(), run.ledger
        run.require_own_state(folder, ledger)
        change = stage_deletion(folder, request.ids, prepared.staging(EXEMPLARS))
        changes: dict[str, StagedChange] = {EXEMPLARS: change}
        digest, private = change.digest, dict[str, bytes]()
        if run.is_ensemble:
            masked, private = withdraw(run, folder, request.ids, prepared)
            changes[ADAPTERS] = masked
            digest = stores_digest(change.digest, masked.digest)
        purged = removable(run, keep_comparison)
        receipt = _receipt(run, request, folder, change, digest, purged, time.perf_counter() - started)
        name = f"{len(ledger.lines):04d}.json"
        text = receipt.sealed(run.key).to_json()
        entry = ledger.following(
            "deleted",
            digest,
            images=receipt.removed,
            remaining=receipt.remaining,
            level=receipt.level,
            receipt=name,
            receipt_sum=sha256(text.encode()),
            tombstones=tuple(sorted(run.key.tombstones(request.ids))),
        )
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
    artefact, level = promise_of_recipe(run.recipe, waiting=True)
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
