"""Run a benchmark of generators: train, search, unlearn, observe, measure, summarise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from accelerate import Accelerator, PartialState

from gen_unlearn.adapters.one_thread import one_thread
from gen_unlearn.benchmark.entries import runs_on
from gen_unlearn.benchmark.generation.bench import GeneratorBench
from gen_unlearn.benchmark.generation.design_work import (
    GeneratorDesignTask,
    observe_design,
    read_design_rows,
    write_design_rows,
)
from gen_unlearn.benchmark.generation.generators import GeneratorPool
from gen_unlearn.benchmark.generation.pilots import search_settings
from gen_unlearn.benchmark.generation.prepared import PreparedGenerators, prepare_generators
from gen_unlearn.benchmark.generation.recipe import GenerationRecipe
from gen_unlearn.benchmark.generation.row_work import GeneratorTask, observe_task, write_row
from gen_unlearn.benchmark.prepared_sets import ROLES
from gen_unlearn.benchmark.results import begin_folder, rows_by_set, write_results
from gen_unlearn.benchmark.rows import Row
from gen_unlearn.benchmark.search import Searched, search_all
from gen_unlearn.benchmark.sharing import share
from gen_unlearn.benchmark.summarising import summarise_set
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED, BenchmarkSummary
from gen_unlearn.benchmark.trained_models import Role
from gen_unlearn.processes import alone, process_state
from gen_unlearn.report.images import Picture, page_picture

_FLOOR = (
    "The second retrained model of a seed is the retrained model of the next one: levels of both rows are of "
    "the same models. The floor of a seed is a distance of two independent models, but each model is in two "
    "of the floors: the interval of their mean is too narrow, by a half with three seeds."
)
"""What a reader of the tables is to know."""

_SHOWN = 4
"""Samples of each class that a page shows."""


def run_generation_benchmark(recipe: GenerationRecipe, out: Path) -> BenchmarkSummary:
    """Run a benchmark of generators, or what is missing of it.

    Models, searches and observations are files that are named by everything that decides them: what an
    interrupted run has finished is found again. Processes share whole models and whole observations, each
    computed with one thread on a CPU: any number of them gives the same numbers.

    Args:
        recipe: the benchmark.
        out: its folder, see `gen_unlearn.benchmark.results.write_results`.

    Raises:
        ValueError: the recipe asks for what the data does not have, or `out` is a file.
    """
    process = process_state()
    begin_folder(recipe, out, process)
    with one_thread(), alone():  # Processes meet where `process` says so, and nowhere within a piece of work.
        accelerator = Accelerator(cpu=process.device.type == "cpu")
        sets = prepare_generators(recipe)
        bench = GeneratorBench(recipe, out, accelerator)
        _train(sets, bench, process)
        searched = search_all(
            {prepared.entry.name: prepared for prepared in sets},
            recipe.methods,
            lambda entry, prepared: search_settings(entry, prepared, recipe, out, accelerator),
            recipe.search.trials,
            process,
        )
        tasks = [task for prepared in sets for task in _tasks(prepared, recipe, searched)]
        designs = _design_tasks(sets, recipe, ORIGINAL)
        _observe(sets, tasks, bench, process)
        share(tasks, lambda task: write_row(task, bench), process, "measure", "row")
        share(designs, lambda task: write_design_rows(task, bench), process, "measure", "design")
        process.wait_for_everyone()
        rows = [bench.rows.read(task.key(recipe)) for task in tasks]
        rows += [row for task in designs for row in read_design_rows(task, bench)]
    summary = _summary(sets, rows, searched, bench)
    if process.is_main_process:
        write_results(out, rows, summary, recipe.measure.table, _sheets(sets, rows, bench))
    process.wait_for_everyone()
    return summary


def planned_generation(recipe: GenerationRecipe) -> dict[str, int]:
    """Return how much a benchmark computes: models to train, trials of searches, and rows."""
    names = [entry.name for entry in recipe.forget_sets]
    methods = sum(runs_on(entry, name) for name in names for entry in recipe.methods)
    designs = sum(runs_on(entry, name) for name in names for entry in recipe.designs)
    pilots = recipe.search.pilot_seeds if recipe.search.trials else 0
    repeated = sum(entry.repeats > 1 for entry in recipe.forget_sets)
    originals = repeated + (repeated < len(names))
    retrained = len(names) * (recipe.retrained_seeds + pilots)
    designed = designs * (recipe.seeds + recipe.retrained_seeds)
    return {
        "models": originals * (recipe.seeds + pilots) + retrained + designed,
        "trials": recipe.search.trials * pilots * methods,
        "rows": recipe.seeds * (methods + designs + len(ROLES) * len(names)),
    }


def _train(sets: Sequence[PreparedGenerators], bench: GeneratorBench, process: PartialState) -> None:
    """Train all originals and retrained models that are not there."""
    pools = [pool for one in sets for part in (one.pools, one.pilots) for pool in part.values()]
    pieces = {(pool.key, seed): pool for pool in pools for seed in pool.seeds}

    def train(piece: tuple[tuple[str, int], GeneratorPool]) -> None:
        (_, seed), pool = piece
        pool.train(bench.models, seed)

    share(list(pieces.items()), train, process, "train", "model")
    process.wait_for_everyone()


def _observe(
    sets: Sequence[PreparedGenerators],
    tasks: Sequence[GeneratorTask],
    bench: GeneratorBench,
    process: PartialState,
) -> None:
    """Train designs, unlearn, and observe all models, each once; what takes as long stands together."""
    recipe = bench.recipe
    for role in (ORIGINAL, RETRAINED):
        designs = _design_tasks(sets, recipe, role)
        share(designs, partial(observe_design, role=role, bench=bench), process, f"{role} designs", "model")
    made = {task.made.key(recipe): task.made for task in sorted(tasks, key=lambda task: task.name)}
    share(list(made.values()), partial(observe_task, bench=bench), process, "unlearn", "row")
    process.wait_for_everyone()


def _tasks(
    prepared: PreparedGenerators, recipe: GenerationRecipe, searched: dict[tuple[str, str], Searched]
) -> list[GeneratorTask]:
    """Return the rows of a forget set, seed by seed."""
    name, tasks = prepared.entry.name, []
    for seed in prepared.pools[ORIGINAL].seeds:
        tasks += [GeneratorTask(prepared, seed, reference=role) for role in ROLES]
        tasks += [
            GeneratorTask(prepared, seed, None, entry, searched[name, entry.row])
            for entry in recipe.methods
            if runs_on(entry, name)
        ]
    return tasks


def _design_tasks(
    sets: Sequence[PreparedGenerators], recipe: GenerationRecipe, role: Role
) -> list[GeneratorDesignTask]:
    """Return designs on forget sets, of all seeds that have models of a role."""
    return [
        GeneratorDesignTask(prepared, entry, seed)
        for entry in recipe.designs
        for prepared in sets
        if runs_on(entry, prepared.entry.name)
        for seed in prepared.pools[role].seeds
    ]


def _summary(
    sets: Sequence[PreparedGenerators],
    rows: Sequence[Row],
    searched: dict[tuple[str, str], Searched],
    bench: GeneratorBench,
) -> BenchmarkSummary:
    """Summarise all rows, forget set by forget set."""
    recipe, grouped = bench.recipe, rows_by_set(rows)
    found = []
    for prepared in sets:
        name = prepared.entry.name
        chosen = {row: one for (of, row), one in searched.items() if of == name}
        found.append(summarise_set(name, grouped[name], chosen))
    return BenchmarkSummary(
        recipe.name,
        recipe.digest,
        "benchmark",
        {"train": recipe.seeds},
        tuple(found),
        bench.environment,
        (_FLOOR,),
    )


def _sheets(
    sets: Sequence[PreparedGenerators], rows: Sequence[Row], bench: GeneratorBench
) -> dict[str, dict[str, Picture]]:
    """Return samples of every model that was made of the first seed, a column for each class."""
    found: dict[str, dict[str, Picture]] = {}
    first = {one.entry.name: one.pools[ORIGINAL].seeds[0] for one in sets}
    for row in rows:
        made = bench.has_seen(row.key)  # A second retrained model was made of another seed.
        if made and row.status == "ok" and row.seeds["train"] == first[row.forget_set]:
            samples = bench.seen(row.key).observation.samples  # In the order of numbers, then classes.
            classes = len(set(samples.labels.tolist()))
            sheet = page_picture(samples.images[: _SHOWN * classes], classes)
            found.setdefault(row.forget_set, {})[row.name] = sheet
    return found
