"""Search the settings of a method on pilot seeds: equal trials for all, a rule that was fixed before."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from accelerate import Accelerator, PartialState
from torch import nn

from gen_unlearn.atomic import write_text
from gen_unlearn.benchmark.entries import MethodEntry, SearchConfig, runs_on
from gen_unlearn.benchmark.rows import FAILURES, reason_of
from gen_unlearn.benchmark.selection import Levels, Trial, select_change, select_trial
from gen_unlearn.benchmark.sharing import share
from gen_unlearn.methods.build import method_of
from gen_unlearn.methods.method import UnlearningMethod, unlearn
from gen_unlearn.methods.search_space import sample_settings
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.repro import derive_seed, digest_json

SetT = TypeVar("SetT")


@dataclass(frozen=True)
class Searched:
    """What a search chose.

    Attributes:
        settings: hyper-parameters, those of the recipe included.
        passes: sample passes of all trials that ran, in percent of one retraining.
        seconds: of all trials, without the pilots' training.
        infeasible: no trial came within the tolerance.
        do_nothing: the original was as good as any trial; the best trial that moves is taken all the same.
        failed: how many trials failed.
        error: why there is nothing to run: all trials failed.
    """

    settings: Mapping[str, Any]
    passes: float = 0.0
    seconds: float = 0.0
    infeasible: bool = False
    do_nothing: bool = False
    failed: int = 0
    error: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the table is to know of the search."""
        said = [f"search: trials failed: {self.failed}"] if self.failed and self.error is None else []
        if self.do_nothing:
            said.append("search: doing nothing was the best trial; the row is the best that moves weights")
        return tuple(said)


@dataclass(frozen=True, eq=False)
class Pilots:
    """Models that methods are tried on: of training seeds that are not reported.

    Attributes:
        seeds: training seeds.
        original: returns the original of a seed, anew at every call.
        retrained: returns the retrained model of a seed.
        levels: how well a model does; sees no test images.
        data: what methods see.
        methods: the table of methods.
        retraining_passes: of images through the network, to retrain it.
        cap: most passes of a method, as a share of these; `None` for no limit.
        decisive: JSON-able, what decides images and pilots.
    """

    seeds: tuple[int, ...]
    original: Callable[[int], nn.Module]
    retrained: Callable[[int], nn.Module]
    levels: Callable[[nn.Module], Levels]
    data: UnlearnData
    methods: Mapping[str, type[UnlearningMethod]]
    retraining_passes: int
    cap: float | None
    decisive: Sequence[Any]


def search(
    entry: MethodEntry, pilots: Pilots, config: SearchConfig, folder: Path, accelerator: Accelerator
) -> Searched:
    """Search the settings of a method on a forget set, or find what an earlier search chose.

    Args:
        entry: the method.
        pilots: what it is tried on.
        config: how many trials, and the rule.
        folder: where searches are kept.
        accelerator: device and precision.
    """
    if not config.trials:
        return Searched(entry.settings)
    decisive = [entry.row, entry.method, entry.settings, asdict(config), pilots.cap, *pilots.decisive]
    path = folder / f"{digest_json(decisive)}.json"
    if path.is_file():
        return Searched(**json.loads(path.read_text(encoding="utf-8"))["chosen"])
    try:
        nothing, retrained = (
            _mean([pilots.levels(load(seed)) for seed in pilots.seeds])
            for load in (pilots.original, pilots.retrained)
        )
    except FAILURES as error:
        return Searched(entry.settings, error=f"a pilot cannot be measured: {reason_of(error)}")
    tried = _try_all(entry, pilots, config, accelerator, nothing, retrained)
    found = _chosen(entry, tried, config, path)
    trials = [
        asdict(trial) | {"error": error} for trial, error in zip(tried.trials, tried.errors, strict=True)
    ]
    report = {"chosen": asdict(found), "trials": trials, "retrained": asdict(tried.retrained)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(report, indent=1) + "\n")
    return found


def search_all(
    sets: Mapping[str, SetT],
    methods: Sequence[MethodEntry],
    one: Callable[[MethodEntry, SetT], Searched],
    trials: int,
    process: PartialState,
) -> dict[tuple[str, str], Searched]:
    """Search the settings of every method on every forget set; all processes find the same files.

    Args:
        sets: name of a forget set -> the set.
        methods: the methods of the recipe.
        one: searches, or finds, the settings of a method on a set.
        trials: of each search; with 0 the settings are those of the recipe.
        process: this one of several, which share the searches.

    Returns:
        Names of forget set and row -> settings.
    """
    pairs = [(name, entry) for entry in methods for name in sets if runs_on(entry, name)]
    if trials:
        share(pairs, lambda pair: one(pair[1], sets[pair[0]]), process, "search", "method")
        process.wait_for_everyone()
    return {(name, entry.row): one(entry, sets[name]) for name, entry in pairs}


@dataclass(frozen=True)
class _Tried:
    """All trials of a search, "do nothing" first, why those that failed did, and what they cost."""

    trials: list[Trial]
    errors: list[str | None]
    retrained: Levels
    passes: float
    seconds: float


def _chosen(entry: MethodEntry, tried: _Tried, search: SearchConfig, path: Path) -> Searched:
    """Apply the rule; a method that does nothing is no row, a flag tells that it should have."""
    failed = [error for error in tried.errors if error is not None]
    found = Searched(entry.settings, tried.passes, tried.seconds, failed=len(failed))
    if len(failed) == len(tried.trials) - 1:
        reason = f"all {len(failed)} trials failed, the first by {failed[0]}; remove {path.name} to try again"
        return replace(found, error=reason)
    chosen = select_trial(tried.trials, tried.retrained, search.rule, search.tolerance)
    nothing = chosen.trial.settings is None
    if nothing:
        chosen = select_change(tried.trials, tried.retrained, search.rule, search.tolerance)
    settings = {**entry.settings, **(chosen.trial.settings or {})}
    return replace(found, settings=settings, infeasible=chosen.infeasible, do_nothing=nothing)


def _try_all(
    entry: MethodEntry,
    pilots: Pilots,
    config: SearchConfig,
    accelerator: Accelerator,
    nothing: Levels,
    retrained: Levels,
) -> _Tried:
    """Run all trials on all pilots."""
    trials, passes = [Trial(None, nothing)], 0.0
    errors: list[str | None] = [None]
    cap = None if pilots.cap is None else pilots.cap * pilots.retraining_passes
    space = pilots.methods[entry.method].search_space()
    searched = {name: kind for name, kind in space.items() if name not in entry.settings}
    started = time.perf_counter()
    for drawn in sample_settings(searched, config.trials, config.seed, entry.method):
        measured: list[Levels] = []
        try:
            method = method_of(pilots.methods, entry.method, {**entry.settings, **drawn})
            for seed in pilots.seeds:
                # Anew for every trial: a faulty method may change what it is given.
                model, start = pilots.original(seed), derive_seed(seed, "search")
                result = unlearn(method, model, pilots.data, accelerator=accelerator, seed=start, cap=cap)
                passes += result.cost.passes
                measured.append(pilots.levels(result.model))
        except FAILURES as error:  # A trial that runs away is a trial that failed, and counted.
            trials.append(Trial(drawn, None))
            errors.append(reason_of(error))
        else:
            trials.append(Trial(drawn, _mean(measured)))
            errors.append(None)
    seconds = time.perf_counter() - started
    return _Tried(trials, errors, retrained, 100 * passes / pilots.retraining_passes, seconds)


def _mean(several: list[Levels]) -> Levels:
    names = ("forget", "retain", "heldout")
    return Levels(*(float(np.mean([getattr(one, name) for one in several])) for name in names))
