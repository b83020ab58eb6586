"""Changes of the adapters on disk that follow from changes of the records: only what is concerned is read.

Each is staged, see `gen_unlearn.adapters.adapter_folder.stage_adapters`, beside the change of the records.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from gen_unlearn.adapters.adapter_folder import AdapterChange, AdapterFolder, stage_adapters
from gen_unlearn.adapters.family import (
    WEIGHTS,
    AdapterFamily,
    AdapterState,
    PixelFamily,
    Subtractable,
)
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.routing import members_of
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.shards import Rows, row_keys

_Changed = dict[int, tuple[int, AdapterState | None]]


def stage_withdrawal(
    recipe: EnsembleRecipe, folder: AdapterFolder, leaving: Rows, staging: Path
) -> AdapterChange:
    """Mask the adapters that leaving records are routed to, and take the records out of them.

    They wait to be rebuilt. Sums are corrected from the leaving records alone; no other record is read.

    Args:
        recipe: what the ensemble is made of.
        folder: its adapters.
        leaving: the records, as the store has them.
        staging: an existing folder for the new files.
    """
    family, changed = recipe.family, _Changed()
    for adapter, records in _routed(recipe, leaving):
        members = folder.sizes[adapter] - len(records)
        state = None
        if members and isinstance(family, Subtractable):
            state = family.update(folder.state(adapter), records, -1, recipe.shape)
        changed[adapter] = members, state
    return stage_adapters(folder, changed, staging)


def stage_rebuild(
    recipe: EnsembleRecipe,
    folder: AdapterFolder,
    exemplars: ExemplarFolder,
    staging: Path,
    again: Collection[int] = (),
) -> AdapterChange:
    """Rebuild all adapters that wait for it: from their sums or, without any, from the records.

    Args:
        recipe: what the ensemble is made of.
        folder: its adapters.
        exemplars: the records.
        staging: an existing folder for the new files.
        again: other adapters of a family that subtracts, to complete again from their sums.
    """
    waiting, family = folder.waiting, recipe.family
    if isinstance(family, Subtractable):
        return stage_adapters(folder, _completed(family, folder, waiting.union(again)), staging)
    rebuilt = fit_members(recipe, rows_of_members(recipe, exemplars, waiting), waiting) if waiting else {}
    sizes = folder.sizes
    return stage_adapters(
        folder, {adapter: (sizes[adapter], rebuilt[adapter]) for adapter in waiting}, staging
    )


def stage_extension(
    recipe: EnsembleRecipe,
    folder: AdapterFolder,
    exemplars: ExemplarFolder,
    added: Rows,
    staging: Path,
    again: Collection[int] = (),
) -> AdapterChange:
    """Give added records to the adapters that they are routed to; what waits goes on waiting.

    Args:
        recipe: what the ensemble is made of.
        folder: its adapters.
        exemplars: the records before the addition.
        added: records that were not held, as the store will have them.
        staging: an existing folder for the new files.
        again: other adapters of a family that subtracts, to complete again from their sums.
    """
    family, sizes, changed = recipe.family, folder.sizes, _Changed()
    if isinstance(family, Subtractable):
        changed |= _completed(family, folder, again)
    for adapter, records in _routed(recipe, added):
        waits, state = adapter in folder.waiting, None
        if isinstance(family, Subtractable):
            before = _sums(folder, adapter) if adapter in sizes else None
            state = family.update(before, records, 1, recipe.shape)
            state = state if waits else family.complete(state)
        changed[adapter] = sizes.get(adapter, 0) + len(records), state
    missing = {adapter for adapter, (_, state) in changed.items() if state is None} - folder.waiting
    if missing:
        kept = rows_of_members(recipe, exemplars, missing)
        rows = Rows.joined([kept, added if kept.pixels.ndim > 1 else added.without_pixels()])
        fitted = fit_members(recipe, rows.select(np.argsort(row_keys(rows))), missing)
        changed |= {adapter: (changed[adapter][0], fitted[adapter]) for adapter in missing}
    return stage_adapters(folder, changed, staging)


def rows_of_members(recipe: EnsembleRecipe, exemplars: ExemplarFolder, adapters: Iterable[int]) -> Rows:
    """Read what some adapters are fit on: with pixels, if they are fit on images, their members alone."""
    rows = exemplars.all_rows(pixels=False)
    if not isinstance(recipe.family, PixelFamily):
        return rows
    routes = Records.of_rows(rows, recipe.shape.features)[1]
    return exemplars.select(rows.ids[np.isin(routes, sorted(adapters)).any(axis=1)])


def fit_members(recipe: EnsembleRecipe, rows: Rows, adapters: Iterable[int]) -> dict[int, AdapterState]:
    """Fit some adapters to their members among stored records, which are sorted by id and label."""
    from gen_unlearn.adapters.resumable import fit_resumably

    records, routes = Records.of_rows(rows, recipe.shape.features)
    members = members_of(routes, len(recipe.keys))
    return fit_resumably(recipe, records, {adapter: members[adapter] for adapter in sorted(adapters)}, None)


def masked(family: AdapterFamily, state: AdapterState) -> AdapterState | None:
    """Return what is kept of an adapter while it waits: its sums, if the family has any."""
    if not isinstance(family, Subtractable):
        return None
    return {name: array for name, array in state.items() if name != WEIGHTS}


def _routed(recipe: EnsembleRecipe, rows: Rows) -> Iterator[tuple[int, Records]]:
    """Yield each adapter that some records are routed to, with these."""
    records, routes = Records.of_rows(rows, recipe.shape.features)
    for adapter, members in enumerate(members_of(routes, len(recipe.keys))):
        if len(members):
            yield adapter, records.select(members)


def _completed(family: Subtractable, folder: AdapterFolder, adapters: Iterable[int]) -> _Changed:
    """Return adapters as they follow from their sums, which are integers and the same everywhere."""
    sizes = folder.sizes
    return {adapter: (sizes[adapter], family.complete(_sums(folder, adapter))) for adapter in adapters}


def _sums(folder: AdapterFolder, adapter: int) -> AdapterState:
    state = folder.state(adapter)
    assert state is not None, "an adapter of a family that subtracts keeps its sums"
    return state
