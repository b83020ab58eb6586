"""Delete images from a run."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

from gen_unlearn.changes import LOCK_SECONDS
from gen_unlearn.commands.derived import remaining, removable
from gen_unlearn.exemplar_changes import StoreChange, stage_deletion
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.forget import ForgetSet
from gen_unlearn.receipts import DeletionReceipt, promise_of
from gen_unlearn.repro import ids_to_hex, software_versions
from gen_unlearn.runs import RunFolder
from gen_unlearn.shards import sha256


def forget(
    run: RunFolder, request: ForgetSet, keep_comparison: bool = False, wait: float = LOCK_SECONDS
) -> tuple[DeletionReceipt, Path]:
    """Delete exemplars of a run, on disk, and file a receipt; return it, not sealed, with the sealed file.

    Neither the network nor the other exemplars are loaded. What was derived from the images and can be made
    again is removed too.

    Args:
        run: the run.
        request: what to delete.
        keep_comparison: keep samples and judge, to compare the model before and after.
        wait: seconds to wait for another change of the run.

    Raises:
        ValueError: an image is not among the exemplars, or another process is changing the run.
    """
    with run.change.prepared(wait) as staging:
        started = time.perf_counter()
        folder, ledger = run.exemplar_folder(), run.ledger
        run.require_own_state(folder, ledger)
        change = stage_deletion(folder, request.ids, staging)
        purged = removable(run, keep_comparison)
        receipt = _receipt(run, request, folder, change, purged, time.perf_counter() - started)
        name = f"{len(ledger.lines):04d}.json"
        text = receipt.sealed(run.key).to_json()
        entry = ledger.following(
            "deleted",
            change.digest,
            images=receipt.removed,
            remaining=receipt.remaining,
            level=receipt.level,
            receipt=name,
            receipt_sum=sha256(text.encode()),
            tombstones=tuple(sorted(run.key.tombstones(request.ids))),
        )
        run.change.commit(change, entry, ledger.size, text, purged)
    return receipt, run.receipts_path / name


def _receipt(
    run: RunFolder,
    request: ForgetSet,
    folder: ExemplarFolder,
    change: StoreChange,
    purged: tuple[str, ...],
    seconds: float,
) -> DeletionReceipt:
    artefact, level = promise_of(run.recipe.task, run.recipe.core.mode)
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
        digest_before=folder.digest,
        digest_after=change.digest,
        seconds=seconds,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=software_versions(),
        purged=purged,
        left=remaining(run, purged),
    )
