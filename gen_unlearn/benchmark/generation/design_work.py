"""Make and observe generators that are designed to forget, each beside its own retrained models."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from gen_unlearn.benchmark.design_work import DELETED
from gen_unlearn.benchmark.generation.bench import GeneratorBench
from gen_unlearn.benchmark.generation.designs import (
    GeneratorDesignEntry,
    TrainedGenerator,
    design_recipe,
    train_design,
)
from gen_unlearn.benchmark.generation.prepared import PreparedGenerators
from gen_unlearn.benchmark.generation.recipe import GenerationRecipe
from gen_unlearn.benchmark.generation.row_work import Beside, empty_row, measured_row, observed_by
from gen_unlearn.benchmark.prepared_sets import ROLES
from gen_unlearn.benchmark.rows import FAILURES, Row, reason_of
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED
from gen_unlearn.benchmark.trained_models import Role
from gen_unlearn.methods.budget import Cost
from gen_unlearn.methods.clock import Clock
from gen_unlearn.progress import hidden_progress
from gen_unlearn.repro import derive_seed, digest_json


@dataclass(frozen=True, eq=False)
class GeneratorDesignTask:
    """A design on a forget set, from one training seed.

    Attributes:
        prepared: the forget set.
        entry: the design.
        seed: training seed.
    """

    prepared: PreparedGenerators
    entry: GeneratorDesignEntry
    seed: int

    def key(self, recipe: GenerationRecipe, part: str) -> str:
        """Return the digest of everything that decides what is seen of one of its models."""
        design = design_recipe(recipe.generator, self.entry)
        sampling = str(design.sampling)
        decisive = [self.entry.name, design.digest, recipe.retraining_passes, torch.__version__]
        observed = observed_by(self.prepared, recipe)
        return digest_json([*observed, *decisive, sampling, self.seed, part])

    def row_name(self, part: str) -> str:
        """Return the name of a row: that of the design, or of one of its retrained models."""
        return self.entry.name if part == DELETED else f"{self.entry.name}, {part}"


def observe_design(task: GeneratorDesignTask, bench: GeneratorBench) -> None:
    """Train, delete, and retrain twice; observe all, unless that was done.

    Deleting what the design cannot delete is an error that is kept in the place of what is seen.
    """
    recipe = bench.recipe
    keys = {part: task.key(recipe, part) for part in (*ROLES, DELETED)}
    if all(map(bench.has_seen, keys.values())):
        return
    bench.begin(keys[DELETED])
    try:
        with hidden_progress():
            _observe_all(task, bench, keys)
    except FAILURES as error:
        bench.fail(keys[DELETED], reason_of(error))


def write_design_rows(task: GeneratorDesignTask, bench: GeneratorBench) -> None:
    """Measure a design that was observed, and its retrained models; keep the rows."""
    own = _row(task, bench, DELETED)
    bench.rows.write(own)
    if own.status == "ok":
        for role in ROLES[1:]:
            bench.rows.write(_row(task, bench, role))


def read_design_rows(task: GeneratorDesignTask, bench: GeneratorBench) -> list[Row]:
    """Return the rows of a design: its own, and unless it failed those of its retrained models."""
    own = bench.rows.read(task.key(bench.recipe, DELETED))
    parts = ROLES[1:] if own.status == "ok" else ()
    return [own, *(bench.rows.read(task.key(bench.recipe, part)) for part in parts)]


def _observe_all(task: GeneratorDesignTask, bench: GeneratorBench, keys: dict[str, str]) -> None:
    prepared = _as_design(task, bench)
    original = _trained(task, bench, ORIGINAL, None)
    bench.see(keys[ORIGINAL], original.pipeline, Cost(0, 0), prepared, original.level)
    for role in ROLES[1:]:
        clock = Clock(bench.accelerator.device)
        retrained = _trained(task, bench, role, original)
        cost = Cost(retrained.passes, retrained.passes, clock.seconds())
        bench.see(keys[role], retrained.pipeline, cost, prepared, retrained.level)
    cost = original.delete(prepared.case.forget)
    bench.see(keys[DELETED], original.pipeline, cost, prepared, original.level)


def _trained(
    task: GeneratorDesignTask, bench: GeneratorBench, role: Role, original: TrainedGenerator | None
) -> TrainedGenerator:
    """Train one model of a design; a retrained one has the public core of the original."""
    case = task.prepared.case
    config = design_recipe(bench.recipe.generator, task.entry)
    config = replace(config, seed=derive_seed(task.seed, "design", role))
    if original is None:
        return train_design(config, case.splits.train)
    return train_design(config, case.retain_images, original.core_ids if len(original.core_ids) else None)


def _as_design(task: GeneratorDesignTask, bench: GeneratorBench) -> PreparedGenerators:
    """Return the forget set, to be sampled as the design says."""
    sampling = design_recipe(bench.recipe.generator, task.entry).sampling
    return replace(task.prepared, measured=replace(task.prepared.measured, sampling=sampling))


def _row(task: GeneratorDesignTask, bench: GeneratorBench, part: str) -> Row:
    recipe, prepared = bench.recipe, task.prepared
    others = [replace(task, seed=seed) for seed in prepared.pools[RETRAINED].seeds if seed != task.seed]
    row = replace(
        empty_row(prepared, bench, task.seed, task.key(recipe, part), task.row_name(part)),
        kind="design" if part == DELETED else "reference",
        method=design_recipe(recipe.generator, task.entry).model.kind,
        settings=task.entry.settings,
    )
    beside = Beside(
        task.key(recipe, ORIGINAL),
        task.key(recipe, RETRAINED),
        [other.key(recipe, RETRAINED) for other in others if bench.has_seen(other.key(recipe, RETRAINED))],
    )
    return measured_row(row, beside, prepared, bench)
