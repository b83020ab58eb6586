"""Search the settings of a method on pilot seeds: equal trials for all, a rule that was fixed before."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import nn

from gen_unlearn.atomic import write_text
from gen_unlearn.benchmark.classifier_training import logits_of
from gen_unlearn.benchmark.prepared_sets import PreparedSet
from gen_unlearn.benchmark.recipe import BenchmarkRecipe, MethodEntry, SearchConfig
from gen_unlearn.benchmark.rows import FAILURES, reason_of
from gen_unlearn.benchmark.selection import Accuracies, Trial, select_change, select_trial
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED
from gen_unlearn.methods.classification.table import METHODS, build_method
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.search_space import sample_settings
from gen_unlearn.metrics.classifier_accuracy import accuracy
from gen_unlearn.repro import derive_seed, digest_json


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


def search_settings(
    entry: MethodEntry, prepared: PreparedSet, recipe: BenchmarkRecipe, out: Path, accelerator: Accelerator
) -> Searched:
    """Search the settings of a method on a forget set, or find what an earlier search chose.

    A pilot is a training seed that is not reported; methods see it as they see any. Trials are judged by
    accuracies on forgotten, retained and held-out images alone.
    """
    if not recipe.search.trials:
        return Searched(entry.settings)
    search = asdict(recipe.search)
    pilots = [pool.key for pool in prepared.pilots.values()]
    names = [prepared.entry.name, entry.row]
    decisive = [*names, entry.method, entry.settings, search, prepared.digest, pilots, recipe.cap]
    path = out / "search" / f"{digest_json(decisive)}.json"
    if path.is_file():
        return Searched(**json.loads(path.read_text(encoding="utf-8"))["chosen"])
    tried = _try_all(entry, prepared, recipe, out, accelerator)
    found = _chosen(entry, tried, recipe.search, path)
    trials = [
        asdict(trial) | {"error": error} for trial, error in zip(tried.trials, tried.errors, strict=True)
    ]
    report = {"chosen": asdict(found), "trials": trials, "retrained": asdict(tried.retrained)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(report, indent=1) + "\n")
    return found


@dataclass(frozen=True)
class _Tried:
    """All trials of a search, "do nothing" first, why those that failed did, and what they cost."""

    trials: list[Trial]
    errors: list[str | None]
    retrained: Accuracies
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
    entry: MethodEntry, prepared: PreparedSet, recipe: BenchmarkRecipe, out: Path, accelerator: Accelerator
) -> _Tried:
    """Run all trials on all pilots."""
    folder, data, device = out / "models", prepared.case.unlearn_data(), accelerator.device
    originals, oracles = prepared.pilots[ORIGINAL], prepared.pilots[RETRAINED]
    starts = {seed: originals.load(folder, seed).to(device) for seed in originals.seeds}
    nothing = _mean([_accuracies(model, prepared) for model in starts.values()])
    retrained = _mean(
        [_accuracies(oracles.load(folder, seed).to(device), prepared) for seed in oracles.seeds]
    )
    trials, passes = [Trial(None, nothing)], 0.0
    errors: list[str | None] = [None]
    whole = recipe.training.sample_passes(len(data.retain))
    cap = None if recipe.cap is None else recipe.cap * whole
    space = METHODS[entry.method].search_space()
    searched = {name: kind for name, kind in space.items() if name not in entry.settings}
    started = time.perf_counter()
    for drawn in sample_settings(searched, recipe.search.trials, recipe.search.seed, entry.method):
        measured: list[Accuracies] = []
        try:
            method = build_method(entry.method, {**entry.settings, **drawn})
            for seed in starts:
                # Anew for every trial: a faulty method may change what it is given.
                model = originals.load(folder, seed).to(device)
                start = derive_seed(seed, "search")
                result = unlearn(method, model, data, accelerator=accelerator, seed=start, cap=cap)
                passes += result.cost.passes
                measured.append(_accuracies(result.model, prepared))
        except FAILURES as error:  # A trial that runs away is a trial that failed, and counted.
            trials.append(Trial(drawn, None))
            errors.append(reason_of(error))
        else:
            trials.append(Trial(drawn, _mean(measured)))
            errors.append(None)
    return _Tried(trials, errors, retrained, 100 * passes / whole, time.perf_counter() - started)


def _accuracies(model: nn.Module, prepared: PreparedSet) -> Accuracies:
    """Return the accuracies in percent that a selection may see; of a class, on held-out images of others."""
    case = prepared.case
    heldout = case.splits.heldout.select(~case.heldout_forgotten)
    parts = (prepared.sets.images["forget"], prepared.sets.images["retain"], heldout)
    found = [accuracy(logits_of(model, images), images.labels).value for images in parts]
    return Accuracies(*found)


def _mean(several: list[Accuracies]) -> Accuracies:
    return Accuracies(
        *(float(np.mean([getattr(one, name) for one in several])) for name in ("forget", "retain", "heldout"))
    )
