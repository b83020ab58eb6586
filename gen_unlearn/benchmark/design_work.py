"""Measure models that are designed to forget: each beside its own retrained models, of the same design."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from gen_unlearn.atomic import write_text
from gen_unlearn.benchmark.designs import Design, build_design
from gen_unlearn.benchmark.measures import Context, measure
from gen_unlearn.benchmark.predictions import Logits, read_logits, save_logits
from gen_unlearn.benchmark.prepared_sets import ROLES, PreparedSet
from gen_unlearn.benchmark.recipe import BenchmarkRecipe, DesignEntry
from gen_unlearn.benchmark.row_work import Bench, require_finite, untrained_logits
from gen_unlearn.benchmark.rows import FAILURES, SCHEMA, Row, reason_of
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED, SECOND_RETRAINED
from gen_unlearn.benchmark.trained_models import Role
from gen_unlearn.methods.budget import Cost
from gen_unlearn.progress import hidden_progress
from gen_unlearn.repro import derive_seed, digest_json

DELETED = "deleted"
"""The original after the deletion, which is the row of the design."""


@dataclass(frozen=True, eq=False)
class DesignTask:
    """A design on a forget set, from one training seed.

    Attributes:
        prepared: the forget set.
        entry: the design.
        seed: training seed.
    """

    prepared: PreparedSet
    entry: DesignEntry
    seed: int

    def key(self, recipe: BenchmarkRecipe, part: str) -> str:
        """Return the digest of everything that decides one of its models, or its row."""
        design = [self.entry.design, self.entry.settings, asdict(recipe.network)]
        names = [self.entry.row, self.prepared.entry.name, self.prepared.entry.seed]
        measured = [recipe.measure.decisive, recipe.seeds]
        return digest_json([SCHEMA, names, design, self.prepared.digest, self.seed, part, measured])

    def row_name(self, part: str) -> str:
        """Return the name of a row: that of the design, or of one of its retrained models."""
        return self.entry.row if part == DELETED else f"{self.entry.row}, {part}"


def train_design(task: DesignTask, bench: Bench) -> None:
    """Train, delete, and retrain twice; keep the logits of all, and what the deletion cost.

    Deleting what the design cannot delete is an error that is kept in the place of the logits.
    """
    file = bench.logits_file(task.key(bench.recipe, DELETED))
    if file.is_file():
        return
    _error_file(task, bench).unlink(missing_ok=True)  # of an earlier run: what failed is tried again
    try:
        with hidden_progress():
            _train(task, bench, Accelerator(cpu=bench.accelerator.device.type == "cpu"))
    except FAILURES as error:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(_error_file(task, bench), json.dumps(reason_of(error)))


def design_rows(task: DesignTask, bench: Bench) -> list[Row]:
    """Return the rows of a design that was measured: its own, and those of its retrained models."""
    row = bench.rows.read(task.key(bench.recipe, DELETED))
    if row.status != "ok":
        return [row]
    return [row, *(bench.rows.read(task.key(bench.recipe, role)) for role in ROLES[1:])]


def measure_design(task: DesignTask, bench: Bench) -> None:
    """Write the row of a design, and those of its own retrained models."""
    error = _error_file(task, bench)
    if error.is_file():
        row = replace(_row(task, bench, DELETED), error=json.loads(error.read_text(encoding="utf-8")))
        bench.rows.write(row)
        return
    recipe, sets = bench.recipe, task.prepared.sets
    logits = {part: _logits(task, bench, part) for part in (*ROLES, DELETED)}
    others = [replace(task, seed=seed) for seed in task.prepared.pools[RETRAINED].seeds if seed != task.seed]
    context = Context(
        sets,
        logits[ORIGINAL],
        logits[RETRAINED],
        [_logits(other, bench, RETRAINED) for other in others if not _error_file(other, bench).is_file()],
        untrained_logits(task.prepared, task.seed),
        recipe.measure,
    )
    costs = json.loads(_cost_file(task, bench).read_text(encoding="utf-8"))
    for part in (RETRAINED, SECOND_RETRAINED, DELETED):
        metrics = measure(logits[part], context)
        require_finite(metrics)
        row = _row(task, bench, part)
        bench.rows.write(replace(row, status="ok", error=None, metrics=metrics, cost=costs[part]))


def _train(task: DesignTask, bench: Bench, accelerator: Accelerator) -> None:
    prepared = task.prepared
    design = build_design(task.entry.design, task.entry.settings, bench.recipe.network)
    train, retain = prepared.case.splits.train, prepared.case.retain_images
    found: dict[str, Logits] = {}
    costs: dict[str, Mapping[str, Any]] = {}
    for role in ROLES:
        images = train if role == ORIGINAL else retain
        trained = design.train(images, _seed(task.seed, role), accelerator=accelerator)
        found[role] = {name: trained.logits(part) for name, part in prepared.sets.images.items()}
        costs[role] = asdict(Cost(0, 0)) | {"passes": 100.0}
        if role == ORIGINAL:
            cost = trained.delete(prepared.case.forget)
            whole = bench.recipe.training.sample_passes(len(retain))
            costs[DELETED] = asdict(cost) | {"passes": 100 * cost.passes / whole}
            found[DELETED] = {name: trained.logits(part) for name, part in prepared.sets.images.items()}
    cost_file = _cost_file(task, bench)
    cost_file.parent.mkdir(parents=True, exist_ok=True)
    write_text(cost_file, json.dumps(costs))
    for part in (*ROLES, DELETED):  # The one that tells that all are there comes last.
        save_logits(bench.logits_file(task.key(bench.recipe, part)), found[part])


def _seed(seed: int, role: Role) -> int:
    """Return the training seed of a model; originals and retrained ones share none."""
    return derive_seed(seed, "design", role)


def _logits(task: DesignTask, bench: Bench, part: str) -> Logits:
    return read_logits(bench.logits_file(task.key(bench.recipe, part)))


def _cost_file(task: DesignTask, bench: Bench) -> Path:
    return bench.logits_file(task.key(bench.recipe, DELETED)).with_suffix(".cost.json")


def _error_file(task: DesignTask, bench: Bench) -> Path:
    return bench.logits_file(task.key(bench.recipe, DELETED)).with_suffix(".error.json")


def _row(task: DesignTask, bench: Bench, part: str) -> Row:
    prepared = task.prepared
    design: Design = build_design(task.entry.design, task.entry.settings, bench.recipe.network)
    return Row(
        task.key(bench.recipe, part),
        task.row_name(part),
        "design" if part == DELETED else "reference",
        prepared.entry.name,
        {"train": task.seed, "unlearn": 0, "forget": prepared.entry.seed, "evaluation": task.seed},
        error="interrupted",
        method=task.entry.design,
        settings={**task.entry.settings, "level": design.level},
        digests={"data": prepared.case.splits.digest, "forget": prepared.case.forget.digest},
        environment=bench.environment,
    )
