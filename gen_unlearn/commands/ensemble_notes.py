"""What people are told of the adapters of an ensemble, after a change of it or before a deletion."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import numpy as np

from gen_unlearn.adapters.records import Records
from gen_unlearn.commands.ensemble_changes import Rebuilding, Rebuilt, completed_by
from gen_unlearn.commands.ensemble_recipe import recipe_of
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.runs import RunFolder
from gen_unlearn.words import counted


def state_notes(run: RunFolder) -> list[str]:
    """Say which adapters wait to be rebuilt or are held back, and what to do about it; nothing of others."""
    if not run.is_ensemble:
        return []
    notes = []
    waiting = len(run.adapter_folder().waiting)
    if waiting or run.ledger.incomplete:
        verbs = "is masked and does" if waiting == 1 else "are masked and do"
        command = f"gen-unlearn forget {shlex.quote(str(run.path))} --rebuild"
        notes.append(f"{counted(waiting, 'adapter')} {verbs} not answer; to rebuild them: {command}")
    release = run.recipe.model.adapters.release
    held = run.held_back(release)
    if held.adapters:
        verb = "is" if len(held.adapters) == 1 else "are"
        notes.append(
            f"{counted(len(held.adapters), 'adapter')} {verb} held back until {held.until(release)} at the "
            f"latest: predictions tell classes without probabilities; --set model.adapters.minimum_batch=1 "
            f"on predict gives them anyway"
        )
    return notes


def deletion_notes(run: RunFolder, receipt: DeletionReceipt, filed: str) -> list[str]:
    """Say what a deletion from an ensemble did besides, and why it is not exact to the bit if it is not.

    Args:
        run: the run after it; of another model nothing is said.
        receipt: of the deletion, or of a rebuilding.
        filed: name of the receipt's file.
    """
    if not run.is_ensemble:
        return []
    notes = []
    if earlier := completed_by(run, filed)[:-1]:
        notes.append(f"this also rebuilt what waited, and completes {named_receipts(earlier)}")
    elsewhere = run.adapters_note.removeprefix("; ") if receipt.level == "distributional" else ""
    return [*notes, *([elsewhere] if elsewhere else []), *state_notes(run)]


def rebuilt_words(rebuilt: Rebuilt) -> str:
    """Return what a rebuilding did, for a terminal; the words of its deletions were printed with them."""
    receipt, words = rebuilt.receipt, ("level", "not covered", "left", "state")
    completes = named_receipts(rebuilt.completes)
    lines = [f"rebuilt     {counted(rebuilt.adapters, 'adapter')}; completes {completes}"]
    return "\n".join([*lines, *(line for line in str(receipt).splitlines() if line.startswith(words))])


def named_receipts(files: Sequence[str]) -> str:
    """Name receipts by their numbers, such as ``receipts 0001, 0002``."""
    numbers = ", ".join(name.removesuffix(".json") for name in files)
    return f"receipt{'' if len(files) == 1 else 's'} {numbers}"


def touched_adapters(run: RunFolder, ids: np.ndarray) -> frozenset[int]:
    """Return the adapters that images of an ensemble are routed to.

    Args:
        run: an adapter ensemble.
        ids: of the images, uint8 ``(n, 16)``; all are held.
    """
    rows = run.exemplar_folder().select(ids)
    routes = Records.of_rows(rows, recipe_of(run).shape.features)[1]
    return frozenset(np.unique(routes).tolist())


def preview_words(run: RunFolder, touched: frozenset[int], rebuilding: Rebuilding) -> str:
    """Say what a deletion would do to adapters.

    Args:
        run: an adapter ensemble.
        touched: the adapters that its images are routed to.
        rebuilding: when they would be rebuilt.
    """
    adapters = counted(len(touched), "adapter")
    if rebuilding == "later":
        return f"would mask {adapters} until they are rebuilt"
    waiting = len(run.adapter_folder().waiting - touched)
    return f"would mask and rebuild {adapters}" + (f", and rebuild {waiting:,} that wait" if waiting else "")
