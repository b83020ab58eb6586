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
from safetensors import SafetensorError, safe_open

from gen_unlearn.adapters.adapter_changes import stage_extension, stage_rebuild, stage_withdrawal
from gen_unlearn.adapters.adapter_folder import AdapterChange
from gen_unlearn.adapters.determinism import environment
from gen_unlearn.adapters.encoding import ensemble_recipe
from gen_unlearn.adapters.ensemble import ARTEFACT
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.release import HeldBack
from gen_unlearn.adapters.routing import Keys
from gen_unlearn.changes import ADAPTERS, LOCK_SECONDS, ChangeFolder
from gen_unlearn.commands.derived import remaining
from gen_unlearn.exemplar_changes import not_held
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.ledger import LedgerEntry
from gen_unlearn.promises import promise_of_recipe
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.run_records import stores_digest
from gen_unlearn.runs import RunFolder
from gen_unlearn.sealing import Tombstones
from gen_unlearn.shards import Rows, sha256

Rebuilding = Literal["now", "later"]
"""When the adapters that a deletion masks are rebuilt."""


def require_ensemble(run: RunFolder) -> None:
    """Raise a ValueError unless a run is an adapter ensemble."""
    if not run.is_ensemble:
        raise ValueError(
            f"expected an adapter ensemble, got {run.path}, a {run.recipe.model.kind} model: it has no "
            f"adapters to rebuild; a deletion from a semi-parametric model is complete at once"
        )


def recipe_of(run: RunFolder) -> EnsembleRecipe:
    """Return what decides the adapters of a run; its encoder is not loaded.

    Raises:
        ValueError: the run is no adapter ensemble, or its keys are not there.
    """
    require_ensemble(run)
    config = run.classifier_config
    try:
        with safe_open(_weights_file(run), framework="numpy") as tensors:
            keys = Keys(tensors.get_tensor("key_codes"), config.model.adapters.keys)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{run.classifier_path} holds no keys of adapters: {error}") from error
    return ensemble_recipe(config, keys, run.exemplar_folder().class_names)


def _weights_file(run: RunFolder) -> Path:
    files = sorted(run.classifier_path.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{run.classifier_path} holds no keys of adapters: it has no safetensors file")
    return files[0]


class EnsembleChange(NamedTuple):
    """A change of the adapters that is staged, and what goes with it.

    Attributes:
        adapters: the change.
        private: new contents of private files of the run, by name: which adapters are held back.
    """

    adapters: AdapterChange
    private: dict[str, bytes]


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
    return EnsembleChange(change, _held_back(run, recipe, leaving))


def extend(run: RunFolder, exemplars: ExemplarFolder, rows: Rows, prepared: ChangeFolder) -> EnsembleChange:
    """Stage what the adapters become once records are added; those that are held already change nothing.

    Args:
        run: an adapter ensemble.
        exemplars: its records, before the addition.
        rows: encoded images.
        prepared: where to.
    """
    recipe, added, staging = recipe_of(run), not_held(exemplars, rows), prepared.staging(ADAPTERS)
    change = stage_extension(recipe, run.adapter_folder(), exemplars, added, staging)
    return EnsembleChange(change, _held_back(run, recipe, added))


def _held_back(run: RunFolder, recipe: EnsembleRecipe, rows: Rows) -> dict[str, bytes]:
    """Return the private file that counts records which are deleted or added."""
    routes = Records.of_rows(rows, recipe.shape.features)[1]
    release = run.classifier_config.model.adapters.release
    held = HeldBack.load(run.held_back_path).changed(routes, release, datetime.now(UTC))
    return {run.held_back_path.name: held.to_json().encode()}


def rebuild(run: RunFolder, wait: float = LOCK_SECONDS) -> tuple[DeletionReceipt, Path] | None:
    """Rebuild the adapters that wait for it; file one receipt for all deletions that this completes.

    Args:
        run: an adapter ensemble.
        wait: seconds to wait for another change of the run.

    Returns:
        The receipt, not sealed but without ids, which are forgotten, and its sealed file; `None` if every
        deletion was complete.

    Raises:
        ValueError: the run is no adapter ensemble, its state is not that of its ledger, or another process is
            changing it.
    """
    recipe = recipe_of(run)
    with run.change.prepared(wait) as prepared:
        started = time.perf_counter()
        exemplars, adapters, ledger = run.exemplar_folder(), run.adapter_folder(), run.ledger
        run.require_own_state(exemplars, ledger)
        pending = ledger.incomplete
        if not pending:
            return None
        change = stage_rebuild(recipe, adapters, exemplars, prepared.staging(ADAPTERS))
        digest = stores_digest(exemplars.digest, change.digest)
        masking = _completing(run, pending)
        receipt = replace(
            masking,
            level=promise_of_recipe(run.recipe)[1],
            remaining=len(exemplars),
            digest_before=run.state_of(exemplars),
            digest_after=digest,
            seconds=masking.seconds + time.perf_counter() - started,
        )
        name = f"{len(ledger.lines):04d}.json"
        text = receipt.sealed(run.key).to_json()
        entry = ledger.following(
            "rebuilt",
            digest,
            images=receipt.removed,
            remaining=receipt.remaining,
            level=receipt.level,
            receipt=name,
            receipt_sum=sha256(text.encode()),
            tombstones=_marks(pending),
        )
        prepared.commit({ADAPTERS: change}, entry, ledger.size, text)
    return receipt, run.receipts_path / name


def complete(run: RunFolder, receipt: DeletionReceipt, wait: float) -> tuple[DeletionReceipt, Path]:
    """Rebuild after a deletion; return its receipt with what is promised now, and the sealed file of that.

    The file states all deletions that were completed with it.

    Args:
        run: an adapter ensemble.
        receipt: of the deletion, not sealed.
        wait: seconds to wait for another change of the run.
    """
    rebuilt = rebuild(run, wait)
    if rebuilt is not None:
        final, path = rebuilt
        now = {name: getattr(final, name) for name in ("level", "digest_after", "seconds", "left")}
        return replace(receipt, **now), path
    # Another process was quicker.
    entry = next(entry for entry in reversed(run.ledger.entries) if entry.kind == "rebuilt")
    path = run.receipts_path / str(entry.receipt)
    return replace(receipt, level=DeletionReceipt.from_file(path).level), path


def _completing(run: RunFolder, pending: Sequence[LedgerEntry]) -> DeletionReceipt:
    """Sum up the receipts of deletions; level and state are to be filled in, and time to be added."""
    receipts = [DeletionReceipt.from_file(run.receipts_path / str(entry.receipt)) for entry in pending]
    per_class: Counter[str] = Counter()
    for receipt in receipts:
        per_class.update(receipt.removed_per_class)
    return DeletionReceipt(
        artefact=ARTEFACT,
        level="influence-free",
        reason="; ".join(dict.fromkeys(receipt.reason for receipt in receipts if receipt.reason)),
        ids=(),
        forget_digest=Tombstones(run.key, frozenset(_marks(pending))).digest,
        removed=sum(receipt.removed for receipt in receipts),
        removed_per_class={name: per_class[name] for name in run.manifest.class_names if per_class[name]},
        remaining=0,
        digest_before="",
        digest_after="",
        seconds=sum(receipt.seconds for receipt in receipts),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=environment(),
        purged=tuple(dict.fromkeys(path for receipt in receipts for path in receipt.purged)),
        left=remaining(run),
    )


def _marks(pending: Sequence[LedgerEntry]) -> tuple[str, ...]:
    return tuple(sorted({mark for entry in pending for mark in entry.tombstones}))
