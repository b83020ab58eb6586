"""Make and observe generators that are designed to forget, each beside its own retrained models."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from gen_unlearn.benchmark.design_work import DELETED
from gen_unlearn.benchmark.generation.bench import GeneratorBench
from gen_unlearn.benchmark.generation.designs import (
    GeneratorDesignEntry,
    TrainedGenerator,
    core_of,
    design_recipe,
    train_design,
)
from gen_unlearn.benchmark.generation.prepared import PreparedGenerators
from gen_unlearn.benchmark.generation.recipe import GenerationRecipe
from gen_unlearn.benchmark.generation.row_work import Compared, empty_row, measured_row, observed_by
from gen_unlearn.benchmark.prepared_sets import ROLES
from gen_unlearn.benchmark.rows import FAILURES, Row, reason_of
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED, SECOND_RETRAINED
from gen_unlearn.benchmark.trained_models import Role
from gen_unlearn.indexed_images import unique_ids
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

    def made(self, part: str) -> tuple[GeneratorDesignTask, str]:
        """Return whose model a part is, as a plain generator's: see `GeneratorTask.made`."""
        if part != SECOND_RETRAINED:
            return self, part
        return replace(self, seed=self.prepared.next_seed(self.seed)), RETRAINED

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


def observe_design(task: GeneratorDesignTask, role: Role, bench: GeneratorBench) -> None:
    """Train the original or the retrained model and observe it, unless that was done.

    The original is observed once more after its deletion. Deleting what the design cannot delete is an error
    that is kept in the place of what is seen.
    """
    parts = (ORIGINAL, DELETED) if role == ORIGINAL else (role,)
    keys = [task.key(bench.recipe, part) for part in parts]
    if all(map(bench.has_seen, keys)):
        return
    bench.begin(keys[-1])
    prepared = _as_design(task, bench)
    try:
        with hidden_progress():
            clock = Clock(bench.accelerator.device)
            trained = _trained(task, bench, role)
            cost = Cost(trained.passes, trained.passes, clock.seconds())
            bench.see(keys[0], trained.pipeline, cost, prepared, trained.level)
            if role == ORIGINAL:
                cost = trained.delete(prepared.case.forget)
                bench.see(keys[-1], trained.pipeline, cost, prepared, trained.level)
    except FAILURES as error:
        bench.fail(keys[-1], reason_of(error))


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


def _trained(task: GeneratorDesignTask, bench: GeneratorBench, role: Role) -> TrainedGenerator:
    """Train one model of a design; a retrained one has the public core of the original."""
    case = task.prepared.case
    config = design_recipe(bench.recipe.generator, task.entry)
    config = replace(config, seed=derive_seed(task.seed, "design", role))
    train = case.splits.train
    if role == ORIGINAL:
        return train_design(config, train)
    public = unique_ids(train.ids[core_of(config, train)])
    return train_design(config, case.retain_images, public if len(public) else None)


def _as_design(task: GeneratorDesignTask, bench: GeneratorBench) -> PreparedGenerators:
    """Return the forget set, to be sampled as the design says."""
    sampling = design_recipe(bench.recipe.generator, task.entry).sampling
    return replace(task.prepared, measured=replace(task.prepared.measured, sampling=sampling))


def _row(task: GeneratorDesignTask, bench: GeneratorBench, part: str) -> Row:
    recipe, prepared = bench.recipe, task.prepared
    made, role = task.made(part)
    others = [replace(task, seed=seed) for seed in prepared.pools[RETRAINED].seeds if seed != made.seed]
    row = replace(
        empty_row(prepared, bench, task.seed, task.key(recipe, part), task.row_name(part)),
        kind="design" if part == DELETED else "reference",
        method=design_recipe(recipe.generator, task.entry).model.kind,
        settings=task.entry.settings,
    )
    compared = Compared(
        made.key(recipe, role),
        task.key(recipe, ORIGINAL),
        task.key(recipe, RETRAINED),
        [other.key(recipe, RETRAINED) for other in others if bench.has_seen(other.key(recipe, RETRAINED))],
    )
    return measured_row(row, compared, prepared, bench)
