"""Deletions from an adapter ensemble on disk, in two changes of the run.

The first takes the images out and masks the adapters that they were routed to: nothing that answers has seen
them any more (influence-free). The second rebuilds these adapters: now the state is, to the bit, that of a
run which never had the images. In between, and if the program dies in between, the adapters stay masked. Many
deletions may share one rebuilding.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from gen_unlearn.adapters.adapter_changes import stage_extension, stage_rebuild, stage_withdrawal
from gen_unlearn.adapters.adapter_folder import AdapterChange, AdapterFolder
from gen_unlearn.adapters.family import Subtractable
from gen_unlearn.adapters.promise import ARTEFACT, environment_digest, promised_level
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.release import HeldBack
from gen_unlearn.changes import ADAPTERS, LOCK_SECONDS, ChangeFolder
from gen_unlearn.commands.derived import remaining
from gen_unlearn.commands.ensemble_recipe import recipe_of, require_ensemble
from gen_unlearn.commands.filing import filed
from gen_unlearn.exemplar_changes import not_held
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.ledger import Ledger, LedgerEntry
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.run_records import stores_digest
from gen_unlearn.runs import RunFolder
from gen_unlearn.sealing import Tombstones
from gen_unlearn.shards import Rows

Rebuilding = Literal["now", "later"]
"""When the adapters that a deletion masks are rebuilt."""


class EnsembleChange(NamedTuple):
    """A change of the adapters that is staged, and what goes with it.

    Attributes:
        adapters: the change.
        private: new contents of private files of the run, by name: which adapters are held back.
        environments: digests of where the adapters that are there after it were fit.
    """

    adapters: AdapterChange
    private: dict[str, bytes]
    environments: tuple[str, ...]


def withdraw(
    run: RunFolder, exemplars: ExemplarFolder, ids: np.ndarray, prepared: ChangeFolder
) -> EnsembleChange:
    """Stage the masking of the adapters that images are routed to.

    Args:
        run: an adapter ensemble.
        exemplars: its records, before the deletion.
        ids: of the images, uint8 ``(n, 16)``; all are held.
        prepared: where to.
    """
    recipe, leaving, staging = recipe_of(run), exemplars.select(ids), prepared.staging(ADAPTERS)
    change = stage_withdrawal(recipe, run.adapter_folder(), leaving, staging)
    return EnsembleChange(change, _held_back(run, recipe, leaving), run.ledger.environments)


def extend(run: RunFolder, exemplars: ExemplarFolder, rows: Rows, prepared: ChangeFolder) -> EnsembleChange:
    """Stage what the adapters become once records are added; those that are held already change nothing.

    Args:
        run: an adapter ensemble.
        exemplars: its records, before the addition.
        rows: encoded images.
        prepared: where to.
    """
    recipe, added, staging = recipe_of(run), not_held(exemplars, rows), prepared.staging(ADAPTERS)
    adapters, ledger = run.adapter_folder(), run.ledger
    again = _fit_elsewhere(recipe, adapters, ledger)
    change = stage_extension(recipe, adapters, exemplars, added, staging, again)
    return EnsembleChange(change, _held_back(run, recipe, added), _environments(run, ledger, adapters, again))


def _fit_elsewhere(recipe: EnsembleRecipe, folder: AdapterFolder, ledger: Ledger) -> frozenset[int]:
    """Return the adapters that have to be completed again here, as they can be from sums, for equal bits."""
    if not isinstance(recipe.family, Subtractable) or ledger.environments == (environment_digest(),):
        return frozenset()
    return frozenset(folder.files) - folder.waiting


def _environments(
    run: RunFolder, ledger: Ledger, folder: AdapterFolder, again: frozenset[int]
) -> tuple[str, ...]:
    """Return where the adapters were fit once those that wait or are completed again are fit here."""
    others = folder.files.keys() - folder.waiting - again
    here = environment_digest(run.fitting_device)
    return tuple(sorted({here, *(ledger.environments if others else ())}))


def _held_back(run: RunFolder, recipe: EnsembleRecipe, rows: Rows) -> dict[str, bytes]:
    """Return the private file that counts records which are deleted or added."""
    routes = Records.of_rows(rows, recipe.shape.features)[1]
    release = run.recipe.model.adapters.release
    if release.minimum_batch == 1 and not run.held_back_path.exists():
        return {}  # Nothing was ever held back, and nothing will be.
    held = HeldBack.load(run.held_back_path).changed(routes, release, datetime.now(UTC))
    return {run.held_back_path.name: held.to_json().encode()}


class Rebuilt(NamedTuple):
    """What a rebuilding did.

    Attributes:
        receipt: of all deletions that it completes, not sealed but without ids, which are forgotten.
        path: the sealed file of that.
        adapters: how many waited.
        completes: names of the receipts of these deletions, in order.
    """

    receipt: DeletionReceipt
    path: Path
    adapters: int
    completes: tuple[str, ...]


def completed_by(run: RunFolder, filed: str) -> tuple[str, ...]:
    """Return the receipts of the deletions that a rebuilding completed, in order; of other changes none.

    Args:
        run: the run.
        filed: name of the rebuilding's receipt.
    """
    entries = run.ledger.entries
    marks = {mark for entry in entries if entry.receipt == filed for mark in entry.tombstones}
    deletions = (entry for entry in entries if entry.kind == "deleted" and entry.receipt != filed)
    return tuple(str(entry.receipt) for entry in deletions if not marks.isdisjoint(entry.tombstones))


def rebuild(run: RunFolder, wait: float = LOCK_SECONDS) -> Rebuilt | None:
    """Rebuild the adapters that wait for it; file one receipt for all deletions that this completes.

    Args:
        run: an adapter ensemble.
        wait: seconds to wait for another change of the run.

    Returns:
        What was done; `None` if every deletion was complete.

    Raises:
        ValueError: the run is no adapter ensemble, its state is not that of its ledger, or another process is
            changing it.
    """
    require_ensemble(run)
    with run.change.locked(wait):
        return _rebuild(run)


def _rebuild(run: RunFolder) -> Rebuilt | None:
    with run.change.staged() as prepared:
        started = time.perf_counter()
        recipe, exemplars = recipe_of(run), run.exemplar_folder()
        adapters, ledger = run.adapter_folder(), run.ledger
        run.require_own_state(exemplars, ledger)
        pending = ledger.incomplete
        if not pending:
            return None
        again = _fit_elsewhere(recipe, adapters, ledger)
        change = stage_rebuild(recipe, adapters, exemplars, prepared.staging(ADAPTERS), again)
        digest = stores_digest(exemplars.digest, change.digest)
        environments = _environments(run, ledger, adapters, again)
        masking = _completing(run, pending)
        seconds = masking.seconds + time.perf_counter() - started  # Trying out whether bits repeat is extra.
        receipt = replace(
            masking,
            level=promised_level(recipe.keys.source, recipe.family, False, environments, recipe.shape),
            versions=_versions(run, environments),
            remaining=len(exemplars),
            digest_before=run.state_of(exemplars),
            digest_after=digest,
            seconds=seconds,
        )
        name, text, entry = filed("rebuilt", receipt, ledger, _marks(pending), environments)
        prepared.commit({ADAPTERS: change}, entry, ledger.size, text)
    completes = tuple(str(deletion.receipt) for deletion in pending)
    return Rebuilt(receipt, run.receipts_path / name, len(adapters.waiting), completes)


def complete(run: RunFolder, receipt: DeletionReceipt) -> tuple[DeletionReceipt, Path]:
    """Rebuild after a deletion; return its receipt with what is promised now, and the sealed file of that.

    The caller has held the lock since the deletion. The file states all deletions that this completes.

    Args:
        run: an adapter ensemble.
        receipt: of the deletion, not sealed.
    """
    rebuilt = _rebuild(run)
    assert rebuilt is not None, "under one lock, no other process completes the deletion"
    final = rebuilt.receipt
    now = {name: getattr(final, name) for name in ("level", "digest_after", "seconds", "left", "versions")}
    return replace(receipt, **now), rebuilt.path


def _versions(run: RunFolder, environments: tuple[str, ...]) -> dict[str, str]:
    """Return what rebuilds here and, if other adapters were fit with something else, that they were."""
    from gen_unlearn.adapters.determinism import environment

    others = len(set(environments) - {environment_digest(run.fitting_device)})
    note = f"not all fit with this, but some in {others} other environments: equal only in law to a fresh fit"
    return environment(run.fitting_device) | ({ADAPTERS: note} if others else {})


def _completing(run: RunFolder, pending: Sequence[LedgerEntry]) -> DeletionReceipt:
    """Sum up deletions; level, software and state are to be filled in, and time to be added.

    Numbers are those of the ledger. Words, classes and time are in the receipts alone: where one is missing
    or was changed they are left out, which the reason says.
    """
    found = [run.filed_receipt(entry) for entry in pending]
    receipts = [receipt for receipt in found if receipt is not None]
    lost = [str(entry.receipt) for entry, receipt in zip(pending, found, strict=True) if receipt is None]
    reasons = [receipt.reason for receipt in receipts if receipt.reason]
    reasons += [f"classes and reason unknown: receipt {name} is missing or was changed" for name in lost]
    per_class: Counter[str] = Counter()
    for receipt in receipts:
        per_class.update(receipt.removed_per_class)
    return DeletionReceipt(
        artefact=ARTEFACT,
        level="influence-free",
        reason="; ".join(dict.fromkeys(reasons)),
        ids=(),
        forget_digest=Tombstones(run.key, frozenset(_marks(pending))).digest,
        removed=sum(entry.images for entry in pending),
        removed_per_class={name: per_class[name] for name in run.manifest.class_names if per_class[name]},
        remaining=0,
        digest_before="",
        digest_after="",
        seconds=sum(receipt.seconds for receipt in receipts),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={},
        purged=tuple(dict.fromkeys(path for receipt in receipts for path in receipt.purged)),
        left=remaining(run),
    )


def _marks(pending: Sequence[LedgerEntry]) -> tuple[str, ...]:
    return tuple(sorted({mark for entry in pending for mark in entry.tombstones}))
