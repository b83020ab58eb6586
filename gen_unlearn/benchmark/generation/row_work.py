"""Make and observe the generators of a benchmark, then measure one beside the others: a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gen_unlearn.benchmark.entries import MethodEntry
from gen_unlearn.benchmark.generation.bench import GeneratorBench
from gen_unlearn.benchmark.generation.measures import measure
from gen_unlearn.benchmark.generation.prepared import PreparedGenerators
from gen_unlearn.benchmark.generation.recipe import GenerationRecipe
from gen_unlearn.benchmark.row_work import require_finite
from gen_unlearn.benchmark.rows import FAILURES, SCHEMA, Row, reason_of
from gen_unlearn.benchmark.search import Searched
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED, SECOND_RETRAINED
from gen_unlearn.benchmark.trained_models import Role
from gen_unlearn.methods.budget import Cost
from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.methods.diffusion.table import build_method
from gen_unlearn.methods.method import unlearn
from gen_unlearn.repro import derive_seed, digest_json


@dataclass(frozen=True, eq=False)
class GeneratorTask:
    """One plain generator to make and to observe.

    Attributes:
        prepared: the forget set.
        seed: training seed.
        reference: which reference model, or `None` for a method.
        entry: the method, or `None` for a reference.
        searched: its settings.
    """

    prepared: PreparedGenerators
    seed: int
    reference: Role | None = None
    entry: MethodEntry | None = None
    searched: Searched = field(default_factory=lambda: Searched({}))

    @property
    def name(self) -> str:
        """Name of the row."""
        if self.entry is not None:
            return self.entry.row
        assert self.reference is not None
        return self.reference

    @property
    def made(self) -> GeneratorTask:
        """The task that makes the model: a second retrained one is the retrained one of the next seed."""
        if self.reference != SECOND_RETRAINED:
            return self
        return replace(self, seed=self.prepared.next_seed(self.seed), reference=RETRAINED)

    @property
    def settings(self) -> dict[str, Any]:
        """Every hyper-parameter of the method."""
        if self.entry is None:
            return {}
        return asdict(build_method(self.entry.method, self.searched.settings))  # type: ignore[call-overload]

    def key(self, recipe: GenerationRecipe) -> str:
        """Return the digest of everything that decides what is seen of the model; its row has the same."""
        method = None if self.entry is None else [self.entry.method, self.settings, recipe.cap]
        pools = [pool.key for pool in self.prepared.pools.values()]
        return digest_json([*observed_by(self.prepared, recipe), self.name, method, pools, self.seed])


def observed_by(prepared: PreparedGenerators, recipe: GenerationRecipe) -> list[Any]:
    """Return what decides how generators of a forget set are observed, JSON-able."""
    sampling = asdict(recipe.generator.sampling)
    return [SCHEMA, prepared.entry.name, prepared.digest, recipe.measure.decisive, sampling]


def observe_task(task: GeneratorTask, bench: GeneratorBench) -> None:
    """Make a model and observe it, unless that was done; why it cannot be made is kept in its place.

    A second retrained model is not for it, see `GeneratorTask.made`.
    """
    key = task.key(bench.recipe)
    if bench.has_seen(key):
        return
    bench.begin(key)
    try:
        model, cost = _made(task, bench)
        bench.see_model(key, model, cost, task.prepared)
    except FAILURES as error:
        bench.fail(key, reason_of(error))


def write_row(task: GeneratorTask, bench: GeneratorBench) -> None:
    """Measure a model that was observed, and keep the row."""
    bench.rows.write(row_of(task, bench))


def row_of(task: GeneratorTask, bench: GeneratorBench) -> Row:
    """Measure a model that was observed; a failure is a row too."""
    prepared, recipe, made = task.prepared, bench.recipe, task.made

    def reference(role: Role, seed: int) -> str:
        return GeneratorTask(prepared, seed, role).key(recipe)

    row = replace(
        empty_row(prepared, bench, task.seed, task.key(recipe), task.name),
        kind="reference" if task.entry is None else "method",
        method=None if task.entry is None else task.entry.method,
        settings=task.settings,
    )
    compared = Compared(
        made.key(recipe),
        reference(ORIGINAL, task.seed),
        reference(RETRAINED, task.seed),
        [reference(RETRAINED, seed) for seed in prepared.pools[RETRAINED].seeds if seed != made.seed],
    )
    row = measured_row(row, compared, prepared, bench)
    search = {"search_seconds": task.searched.seconds, "search_passes": task.searched.passes}
    return replace(row, cost={**row.cost, **search}) if row.status == "ok" else row


@dataclass(frozen=True)
class Compared:
    """Keys of a model and of those that it is measured beside.

    Attributes:
        model: what is measured.
        original: of the seed of the row.
        retrained: of the seed of the row.
        others: retrained models of other seeds than the model's: it is never beside itself.
    """

    model: str
    original: str
    retrained: str
    others: Sequence[str]


def empty_row(prepared: PreparedGenerators, bench: GeneratorBench, seed: int, key: str, name: str) -> Row:
    """Return a row of which nothing is measured yet."""
    return Row(
        key,
        name,
        "reference",
        prepared.entry.name,
        {"train": seed, "unlearn": 0, "forget": prepared.entry.seed, "evaluation": bench.recipe.measure.seed},
        error="interrupted",
        digests={"data": prepared.case.splits.digest, "forget": prepared.case.forget.digest},
        environment=bench.environment,
    )


def measured_row(row: Row, compared: Compared, prepared: PreparedGenerators, bench: GeneratorBench) -> Row:
    """Fill in the metrics and the cost of a row, or why there are none."""
    keys = (compared.model, compared.original, compared.retrained)
    for key in keys:
        if (error := bench.error(key)) is not None:
            return replace(row, error=error)
    own, original, retrained = map(bench.seen, keys)
    others = [bench.seen(key).observation for key in compared.others if bench.error(key) is None]
    observations = (own.observation, original.observation, retrained.observation)
    try:
        metrics = measure(*observations, others, prepared.measured)
        require_finite(metrics)
    except FAILURES as error:
        return replace(row, error=reason_of(error))
    digests = {"original": original.digest, "retrained": retrained.digest, "model": own.digest}
    passes = 100 * own.cost.passes / bench.recipe.retraining_passes
    return replace(
        row,
        status="ok",
        error=None,
        metrics=metrics,
        settings=row.settings if own.level is None else {**row.settings, "level": own.level},
        digests={**row.digests, **digests},
        cost={**asdict(own.cost), "passes": passes},
    )


def _made(task: GeneratorTask, bench: GeneratorBench) -> tuple[DenoisingModel, Cost]:
    """Return the model of a row, and what it cost."""
    prepared, recipe = task.prepared, bench.recipe
    if task.reference is not None:
        pool = prepared.pools[task.reference]
        model, passes = pool.load(bench.models, task.seed), recipe.retraining_passes
        nothing = task.reference == ORIGINAL
        seconds = pool.seconds(bench.models, task.seed)
        return model, Cost(0, 0) if nothing else Cost(passes, passes, seconds)
    assert task.entry is not None
    if task.searched.error is not None:
        raise ValueError(task.searched.error)
    original = prepared.pools[ORIGINAL].load(bench.models, task.seed).to(bench.accelerator.device)
    result = unlearn(
        build_method(task.entry.method, task.searched.settings),
        original,
        prepared.case.unlearn_data(),
        accelerator=bench.accelerator,
        seed=derive_seed(task.seed, "unlearn"),
        cap=None if recipe.cap is None else recipe.cap * recipe.retraining_passes,
    )
    assert isinstance(result.model, DenoisingModel)
    return result.model, result.cost
