"""Measure one row of a benchmark: a reference model, or a method on the original of a seed."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.benchmark.entries import MethodEntry
from gen_unlearn.benchmark.functional import Functional
from gen_unlearn.benchmark.measures import Context, Metrics, measure
from gen_unlearn.benchmark.networks import BenchmarkNetwork
from gen_unlearn.benchmark.predictions import Logits, read_logits, save_logits
from gen_unlearn.benchmark.prepared_sets import PreparedSet
from gen_unlearn.benchmark.recipe import BenchmarkRecipe
from gen_unlearn.benchmark.rows import FAILURES, SCHEMA, Row, RowFolder, reason_of
from gen_unlearn.benchmark.search import Searched
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED
from gen_unlearn.benchmark.trained_models import Role
from gen_unlearn.methods.budget import Cost
from gen_unlearn.methods.classification.table import build_method
from gen_unlearn.methods.method import unlearn
from gen_unlearn.repro import derive_seed, digest_json, digest_state, software_versions


@dataclass(frozen=True, eq=False)
class Bench:
    """Where a benchmark is computed, and where its files lie.

    Attributes:
        recipe: the benchmark.
        out: its folder.
        accelerator: device and precision.
    """

    recipe: BenchmarkRecipe
    out: Path
    accelerator: Accelerator

    @property
    def models(self) -> Path:
        """Folder of originals and retrained models."""
        return self.out / "models"

    @property
    def rows(self) -> RowFolder:
        """The rows that are there."""
        return RowFolder(self.out / "rows")

    @cached_property
    def environment(self) -> dict[str, str]:
        """Versions and hardware."""
        return environment_of(self.accelerator)

    def model(self, prepared: PreparedSet, role: Role, seed: int) -> BenchmarkNetwork:
        """Return a trained reference model on the device."""
        return prepared.pools[role].load(self.models, seed).to(self.accelerator.device)

    def retraining_passes(self, prepared: PreparedSet) -> int:
        """Return how many images pass the network, forward and backward, when it is retrained."""
        return self.recipe.training.sample_passes(len(prepared.case.retain_images))

    def logits_file(self, key: str) -> Path:
        """Return where the logits of a row are kept."""
        return self.out / "logits" / f"{key}.safetensors"


def environment_of(accelerator: Accelerator) -> dict[str, str]:
    """Return versions and hardware, for rows and summaries."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {**software_versions(), "device": f"{device.type}: {name}"}


@dataclass(frozen=True, eq=False)
class RowTask:
    """One row to measure.

    Attributes:
        prepared: the forget set.
        seed: training seed.
        reference: which reference model, or `None` for a method.
        entry: the method, or `None` for a reference.
        searched: its settings.
        unlearn_seed: which run of the method on this original.
    """

    prepared: PreparedSet
    seed: int
    reference: Role | None = None
    entry: MethodEntry | None = None
    searched: Searched = field(default_factory=lambda: Searched({}))
    unlearn_seed: int = 0

    @property
    def name(self) -> str:
        """Name of the row."""
        if self.entry is not None:
            return self.entry.row
        assert self.reference is not None
        return self.reference

    def key(self, recipe: BenchmarkRecipe) -> str:
        """Return the digest of everything that decides the row."""
        method = None if self.entry is None else [self.entry.method, self.settings, recipe.cap]
        names = [self.name, self.prepared.entry.name, self.prepared.entry.seed]
        pools = {role: pool.key for role, pool in self.prepared.pools.items()}
        seeds = [self.seed, self.unlearn_seed]
        return digest_json(
            [SCHEMA, names, method, self.prepared.digest, pools, seeds, recipe.measure.decisive]
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Every hyper-parameter of the method."""
        if self.entry is None:
            return {}
        return asdict(build_method(self.entry.method, self.searched.settings))  # type: ignore[call-overload]


def run_task(task: RowTask, bench: Bench) -> Row:
    """Measure a row, or find it; a failure is a row too.

    It is written as failed before anything is computed, so that an interrupted one is not taken for done.
    """
    key = task.key(bench.recipe)
    found = bench.rows.find(key)
    if found is not None and bench.logits_file(key).is_file():
        return found
    row = _empty_row(task, bench, key)
    bench.rows.write(row)
    try:
        row = _measured(task, bench, row)
    except FAILURES as error:
        row = replace(row, error=reason_of(error))
    bench.rows.write(row)
    return row


def _empty_row(task: RowTask, bench: Bench, key: str) -> Row:
    prepared = task.prepared
    return Row(
        key,
        task.name,
        "reference" if task.entry is None else "method",
        prepared.entry.name,
        {
            "train": task.seed,
            "unlearn": task.unlearn_seed,
            "forget": prepared.entry.seed,
            "evaluation": task.seed,
        },
        error="interrupted",
        method=None if task.entry is None else task.entry.method,
        settings=task.settings,
        digests={"data": prepared.case.splits.digest, "forget": prepared.case.forget.digest},
        environment=bench.environment,
    )


def _measured(task: RowTask, bench: Bench, row: Row) -> Row:
    """Make the model of a row, and measure it."""
    prepared, passes = task.prepared, bench.retraining_passes(task.prepared)
    original = bench.model(prepared, ORIGINAL, task.seed)
    model, cost = _unlearned(task, bench, original)
    own = prepared.sets.logits(model)
    metrics = measure(own, _context(prepared, bench, task.seed)) | _functional(task, bench, model)
    require_finite(metrics)
    save_logits(bench.logits_file(row.key), own)
    states = {
        "original": original,
        "retrained": bench.model(prepared, RETRAINED, task.seed),
        "model": model,
    }
    digests = {name: digest_state(of.state_dict()) for name, of in states.items()}
    search = {"search_seconds": task.searched.seconds, "search_passes": task.searched.passes}
    return replace(
        row,
        status="ok",
        error=None,
        metrics=metrics,
        digests={**row.digests, **digests},
        cost={**asdict(cost), "passes": 100 * cost.passes / passes, **search},
    )


def _unlearned(task: RowTask, bench: Bench, original: BenchmarkNetwork) -> tuple[nn.Module, Cost]:
    """Return the model of a row, and what it cost."""
    prepared, passes = task.prepared, bench.retraining_passes(task.prepared)
    if task.entry is None:
        assert task.reference is not None
        if task.reference == ORIGINAL:
            return original, Cost(0, 0)
        seconds = prepared.pools[task.reference].seconds(bench.models, task.seed)
        return bench.model(prepared, task.reference, task.seed), Cost(passes, passes, seconds)
    if task.searched.error is not None:
        raise ValueError(task.searched.error)
    result = unlearn(
        build_method(task.entry.method, task.searched.settings),
        original,
        prepared.case.unlearn_data(),
        accelerator=bench.accelerator,
        seed=derive_seed(task.seed, "unlearn", task.unlearn_seed),
        cap=None if bench.recipe.cap is None else bench.recipe.cap * passes,
    )
    return result.model, result.cost


def require_finite(metrics: Metrics) -> None:
    """Raise a ValueError that names a metric that is not finite."""
    if broken := [name for name, value in metrics.items() if not math.isfinite(value)]:
        raise ValueError(f"expected finite metrics, got {metrics[broken[0]]} as {broken[0]}")


def untrained_logits(prepared: PreparedSet, seed: int) -> Logits:
    """Return the logits of a network with fresh weights that no model of the benchmark started from."""
    network = prepared.pools[ORIGINAL].build(derive_seed(seed, "untrained"))
    return prepared.sets.logits(network)


def predict_references(prepared: PreparedSet, bench: Bench) -> None:
    """Keep the logits of all originals and retrained models, which rows of all seeds are measured against."""
    for role in (ORIGINAL, RETRAINED):
        for seed in prepared.pools[role].seeds:
            file = _reference_file(prepared, bench, role, seed)
            if not file.is_file():
                save_logits(file, prepared.sets.logits(bench.model(prepared, role, seed)))


@lru_cache(maxsize=4)
def _context(prepared: PreparedSet, bench: Bench, seed: int) -> Context:
    """Return what models of a seed are measured against."""
    pools, sets = prepared.pools, prepared.sets
    others = [other for other in pools[RETRAINED].seeds if other != seed]
    return Context(
        sets,
        _reference(prepared, bench, ORIGINAL, seed),
        _reference(prepared, bench, RETRAINED, seed),
        [_reference(prepared, bench, RETRAINED, other) for other in others],
        untrained_logits(prepared, seed),
        bench.recipe.measure,
    )


def _reference(prepared: PreparedSet, bench: Bench, role: Role, seed: int) -> Logits:
    return read_logits(_reference_file(prepared, bench, role, seed))


def _reference_file(prepared: PreparedSet, bench: Bench, role: Role, seed: int) -> Path:
    decisive = [prepared.entry.name, prepared.pools[role].key, prepared.digest, seed]
    return bench.logits_file(digest_json(decisive))


@lru_cache(maxsize=4)
def _functional_of(prepared: PreparedSet, bench: Bench, seed: int) -> Functional:
    return Functional(
        prepared.case,
        bench.model(prepared, ORIGINAL, seed),
        bench.model(prepared, RETRAINED, seed),
        derive_seed(seed, "functional"),
    )


def _functional(task: RowTask, bench: Bench, model: nn.Module) -> Metrics:
    """Return what is measured by training further, if it is asked for."""
    if bench.recipe.measure.functional == "none":
        return {}
    return _functional_of(task.prepared, bench, task.seed).measure(model)
