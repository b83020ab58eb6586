"""Fit adapters that take long one stack after another, and keep those that are done for the next attempt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from gen_unlearn.adapters.determinism import computing_device
from gen_unlearn.adapters.family import AdapterState, PixelFamily, has_weights
from gen_unlearn.adapters.promise import environment_digest
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import Records
from gen_unlearn.atomic import write_undated
from gen_unlearn.processes import from_main, process_state
from gen_unlearn.progress import progress_bar
from gen_unlearn.repro import digest_json


def fit_resumably(
    recipe: EnsembleRecipe, records: Records, members: Mapping[int, np.ndarray], folder: Path | None
) -> dict[int, AdapterState]:
    """Fit adapters to their members, see `EnsembleRecipe.fit`.

    Those that are trained on images are kept, each in a file named after all that decides its bits, software
    and processor too, so that an interrupted fit goes on where it was. Others are fit at once.

    Args:
        recipe: what the ensemble is made of.
        records: the records.
        members: the rows of `records` that are routed to each adapter; without any, it has no state.
        folder: for what is done; `None` keeps nothing.
    """
    family = recipe.family
    filled = {adapter: rows for adapter, rows in members.items() if len(rows)}
    if not isinstance(family, PixelFamily):
        return recipe.fit(records, filled)
    by_size = sorted(filled, key=lambda adapter: -len(filled[adapter]))
    process = process_state()
    at_once = family.stack * process.num_processes
    fitted: dict[int, AdapterState] = {}
    with progress_bar(recipe.visits(filled.values()), "fit adapters") as progress:
        for start in range(0, len(by_size), at_once):
            chosen = by_size[start : start + at_once]
            files = {adapter: _file(recipe, records, adapter, filled[adapter], folder) for adapter in chosen}
            done = {adapter: state for adapter, file in files.items() if (state := _read(file)) is not None}
            known = from_main(done)  # What is missing is fit by all processes together.
            missing = {adapter: filled[adapter] for adapter in chosen if adapter not in known}
            fresh = recipe.fit(records, missing) if missing else {}
            if process.is_main_process:
                for adapter, state in fresh.items():
                    _write(files[adapter], state)
            fitted |= known | fresh
            progress.update(recipe.visits(filled[adapter] for adapter in chosen))
    return dict(sorted(fitted.items()))


def _file(
    recipe: EnsembleRecipe, records: Records, adapter: int, rows: np.ndarray, folder: Path | None
) -> Path | None:
    if folder is None:
        return None
    here = environment_digest(computing_device(recipe.family))
    made_from = digest_json([recipe.digest, adapter, records.select(rows).digest, here])
    return folder / f"{adapter:05d}-{made_from[:32]}.safetensors"


def _read(file: Path | None) -> AdapterState | None:
    """Return an adapter that is done; a file that was cut short counts for none."""
    if file is None or not file.exists():
        return None
    try:
        state: AdapterState = load_file(file)
    except SafetensorError:
        return None
    return state if has_weights(state) else None


def _write(file: Path | None, state: AdapterState) -> None:
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_undated(file, save(dict(state)))
