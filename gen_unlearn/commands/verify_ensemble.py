"""Verify the adapters of an ensemble: against their records, and by fitting all or some of them again.

Several processes, started by `torchrun`, share the fitting.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from gen_unlearn.adapters.adapter_changes import fit_members, masked, rows_of_members
from gen_unlearn.adapters.adapter_folder import AdapterFolder, stage_adapters
from gen_unlearn.adapters.family import AdapterFamily, AdapterState
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.release import HeldBack
from gen_unlearn.adapters.routing import members_of, route
from gen_unlearn.atomic import write_undated
from gen_unlearn.changes import refuse_links
from gen_unlearn.commands.ensemble_recipe import recipe_of, require_ensemble
from gen_unlearn.commands.trained_ensemble import TrainedEnsemble
from gen_unlearn.indexed_images import first_few
from gen_unlearn.processes import from_main
from gen_unlearn.run_paths import RunPaths
from gen_unlearn.runs import RunFolder
from gen_unlearn.shards import SUMS, parse_sums, sha256

_CONFIDENCE = 0.95


def check_adapters(run: RunFolder) -> str:
    """Check every byte of the adapters, and their members against the records; return what was found.

    Raises:
        ValueError: something is not as it should be.
    """
    refuse_links([run.path, run.model_path, run.adapters_path])
    folder, recipe = run.adapter_folder(), recipe_of(run)
    folder.verify()
    records, routes = Records.of_rows(run.exemplar_folder().all_rows(pixels=False), recipe.shape.features)
    if not np.array_equal(routes, route(records.codes, recipe.keys, recipe.neighbours)):
        raise ValueError("records are routed to other adapters than their codes and the keys say")
    members = enumerate(members_of(routes, len(recipe.keys)))
    sizes = {adapter: len(rows) for adapter, rows in members if len(rows)}
    if folder.sizes != sizes:
        wrong = sorted(a for a in sizes.keys() | folder.sizes.keys() if sizes.get(a) != folder.sizes.get(a))
        names = first_few([str(adapter) for adapter in wrong])
        raise ValueError(f"{len(wrong)} do not have the members that are routed to them: {names}")
    waiting = len(folder.waiting)
    if waiting and not run.ledger.incomplete:
        raise ValueError(f"{waiting} wait to be rebuilt, but no deletion since the last rebuilding needs it")
    held = HeldBack.load(run.held_back_path).adapters
    if unknown := sorted(adapter for adapter in held if not 0 <= adapter < len(recipe.keys)):
        raise ValueError(f"{run.held_back_path} names adapters that do not exist: {unknown}; remove it")
    found = f"{len(sizes)} of {len(recipe.keys)} have members, every byte as listed"
    remedy = f"; {waiting} wait to be rebuilt and do not answer: gen-unlearn forget {run.path} --rebuild"
    return found + (remedy if waiting else "")


def replay_adapters(run: RunFolder) -> str:
    """Fit all adapters to the surviving records, as they are stored, and compare every file's SHA-256.

    Raises:
        ValueError: a file differs.
    """
    count = _require_equal(run, run.adapter_folder().files)
    return f"{count} files, SHA-256 equal{run.environment_note}"


def require_sample(run: RunFolder, count: int) -> None:
    """Raise a ValueError unless a run has adapters, and a sample of them at least one."""
    require_ensemble(run)
    if count < 1:
        raise ValueError(f"expected a sample of at least 1 adapter, got {count}; or leave it out for all")


def replay_sample(run: RunFolder, count: int) -> str:
    """Fit some adapters, chosen at random, to the surviving records, and compare their files' SHA-256.

    Args:
        run: an adapter ensemble.
        count: how many, at least 1; at most all are.

    Raises:
        ValueError: a file differs, or a count below 1.
    """
    require_sample(run, count)
    listed = list(run.adapter_folder().files)
    chosen = from_main(secrets.SystemRandom().sample(listed, min(count, len(listed))))
    drawn = _require_equal(run, chosen)
    if drawn == len(listed):
        said = f"all {drawn} files, SHA-256 equal" if drawn else "no adapter has members: nothing to replay"
        return f"{said}{run.environment_note}"
    share = 1 - (1 - _CONFIDENCE) ** (1 / drawn)
    return (
        f"{drawn} of {len(listed)} files, chosen at random, SHA-256 equal; if a fraction f of the "
        f"adapters were false, this had noticed with probability 1 - (1 - f)^{drawn}, {_CONFIDENCE:.0%} for "
        f"f = {share:.2%}{run.environment_note}"
    )


def _require_equal(run: RunFolder, adapters: Iterable[int]) -> int:
    """Fit adapters again and compare; return how many."""
    folder, recipe, chosen = run.adapter_folder(), recipe_of(run), sorted(adapters)
    fitted = fit_members(recipe, rows_of_members(recipe, run.exemplar_folder(), chosen), chosen)
    sizes = {adapter: folder.sizes[adapter] for adapter in fitted}
    with tempfile.TemporaryDirectory() as scratch:
        sums = save_as_masked(recipe.family, fitted, sizes, folder.waiting, Path(scratch) / "adapters")
    names = [folder.files[adapter].name for adapter in chosen]
    kept = {name: sha256((folder.path / name).read_bytes()) for name in names}
    wrong = sorted(name for name in names if sums.get(name) != kept[name])
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(chosen)} files differ: {first_few(wrong)}{run.environment_note}"
        )
    return len(chosen)


def save_replayed(run: RunFolder, trained: TrainedEnsemble, path: Path) -> None:
    """Save an ensemble that was trained again, with those adapters masked that wait in the run."""
    trained.save_network(path)
    trained.save_exemplars(path / RunPaths.exemplars_name)
    sizes = {adapter: len(rows) for adapter, rows in trained.members.items()}
    waiting, family = run.adapter_folder().waiting, trained.recipe.family
    save_as_masked(family, trained.adapters, sizes, waiting, path / RunPaths.adapters_name)


def save_as_masked(
    family: AdapterFamily,
    states: Mapping[int, AdapterState],
    sizes: Mapping[int, int],
    waiting: frozenset[int],
    path: Path,
) -> dict[str, str]:
    """Write adapters to a new folder as they are kept while some wait; return the SHA-256 of each file.

    Args:
        family: the kind of adapter.
        states: the adapters, complete.
        sizes: members of each.
        waiting: which are kept without weights.
        path: the folder; its parent is there.
    """
    kept = {
        adapter: (sizes[adapter], masked(family, state) if adapter in waiting else state)
        for adapter, state in states.items()
    }
    path.mkdir()
    change = stage_adapters(AdapterFolder(path, {}), kept, path)
    write_undated(path / SUMS, change.sums.encode())
    return parse_sums(change.sums, str(path))
