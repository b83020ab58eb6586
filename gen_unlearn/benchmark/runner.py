"""Run a benchmark: train, search, unlearn, measure, summarise; whole rows are shared among processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator, PartialState

from gen_unlearn.adapters.one_thread import one_thread
from gen_unlearn.benchmark.classifier_search import search_settings
from gen_unlearn.benchmark.design_work import DesignTask, design_rows, measure_design, train_design
from gen_unlearn.benchmark.entries import MethodEntry, runs_on
from gen_unlearn.benchmark.pools import measure_pool
from gen_unlearn.benchmark.predictions import Logits, MeasuredSets, read_logits
from gen_unlearn.benchmark.prepared_sets import (
    MEMORISATION_MODELS,
    ROLES,
    PreparedSet,
    needs_scores,
    prepare_sets,
)
from gen_unlearn.benchmark.recipe import BenchmarkRecipe
from gen_unlearn.benchmark.results import begin_folder, rows_by_set, write_results
from gen_unlearn.benchmark.row_work import Bench, RowTask, predict_references, run_task
from gen_unlearn.benchmark.rows import Row
from gen_unlearn.benchmark.search import Searched, search_all
from gen_unlearn.benchmark.sharing import share
from gen_unlearn.benchmark.summarising import PoolMeasure, summarise_set
from gen_unlearn.benchmark.summary import BenchmarkSummary
from gen_unlearn.benchmark.trained_models import ModelPool, untrained
from gen_unlearn.methods.classification.table import METHODS
from gen_unlearn.processes import alone, process_state


def run_benchmark(recipe: BenchmarkRecipe, out: Path) -> BenchmarkSummary:
    """Run a benchmark, or what is missing of it.

    Models, searches and rows are files that are named by everything that decides them: what an interrupted
    run has finished is found again, and what the recipe changed is computed anew. Processes share whole pools
    and whole rows, each computed with one thread on a CPU: any number of them gives the same numbers.

    Args:
        recipe: the benchmark.
        out: its folder; ``rows.jsonl``, ``summary.json``, ``table.md`` and ``report.html`` are written there.

    Raises:
        ValueError: the recipe asks for what the data does not have, or `out` is a file.
    """
    process = process_state()
    begin_folder(recipe, out, process)
    with one_thread(), alone():  # Processes meet where `process` says so, and nowhere within a piece of work.
        accelerator = Accelerator(cpu=process.device.type == "cpu")
        with process.main_process_first():
            sets = prepare_sets(recipe, out)
        bench = Bench(recipe, out, accelerator)
        _train(sets, bench, process)
        searched = search_all(
            {prepared.entry.name: prepared for prepared in sets},
            recipe.methods,
            lambda entry, prepared: search_settings(entry, prepared, recipe, out, accelerator),
            recipe.search.trials,
            process,
        )
        tasks = [task for prepared in sets for task in _tasks(prepared, recipe, searched)]
        share(tasks, lambda task: run_task(task, bench), process, "measure", "row")
        designs = _design_tasks(sets, recipe)
        share(designs, lambda task: train_design(task, bench), process, "designs", "model")
        process.wait_for_everyone()
        share(designs, lambda task: measure_design(task, bench), process, "measure", "design")
        process.wait_for_everyone()
        rows = [bench.rows.read(task.key(recipe)) for task in tasks]
        rows += [row for task in designs for row in design_rows(task, bench)]
        summary = _summary(sets, rows, searched, bench)
    if process.is_main_process:
        write_results(out, rows, summary, recipe.measure.table)
    process.wait_for_everyone()
    return summary


def planned(recipe: BenchmarkRecipe) -> dict[str, int]:
    """Return how much a benchmark computes: models to train, trials of searches, and rows."""
    pairs = [(entry, name) for name in _names(recipe) for entry in recipe.methods if runs_on(entry, name)]
    runs = sum(recipe.seeds * _unlearn_seeds(entry, recipe) for entry, _ in pairs)
    trials = recipe.search.trials * recipe.search.pilot_seeds * len(pairs)
    references = len(ROLES) * recipe.seeds * len(recipe.forget_sets)
    designs = sum(runs_on(entry, name) for name in _names(recipe) for entry in recipe.designs)
    return {
        "models": _models(recipe) + len(ROLES) * recipe.seeds * designs,
        "trials": trials,
        "rows": runs + references + recipe.seeds * designs,
    }


def _models(recipe: BenchmarkRecipe) -> int:
    """Return how many models are trained; forget sets that change no labels share the originals."""
    chosen = [entry.choose for entry in recipe.forget_sets]
    relabelled = sum(each.kind == "canary" or bool(each.coarse) for each in chosen)
    originals = relabelled + (relabelled < len(chosen))
    pilots = recipe.search.pilot_seeds if recipe.search.trials else 0
    scoring = MEMORISATION_MODELS if any(map(needs_scores, chosen)) else 0
    retrained = len(chosen) * (2 * recipe.seeds + pilots)
    return originals * (recipe.seeds + pilots) + retrained + scoring


def _train(sets: Sequence[PreparedSet], bench: Bench, process: PartialState) -> None:
    """Train all originals and retrained models that are not there."""
    pools = untrained([pool for one in sets for part in (one.pools, one.pilots) for pool in part.values()])
    device = bench.accelerator.device
    pieces = [(pool, seeds) for pool in pools for seeds in pool.pieces]

    def train(piece: tuple[ModelPool, tuple[int, ...]]) -> None:
        pool, seeds = piece
        pool.train(seeds, bench.models, device)

    share(pieces, train, process, "train", "pool")
    process.wait_for_everyone()
    share(sets, lambda prepared: predict_references(prepared, bench), process, "predict", "set")
    process.wait_for_everyone()


def _tasks(
    prepared: PreparedSet, recipe: BenchmarkRecipe, searched: dict[tuple[str, str], Searched]
) -> list[RowTask]:
    """Return the rows of a forget set, seed by seed."""
    name, tasks = prepared.entry.name, []
    for seed in prepared.pools[ROLES[0]].seeds:
        tasks += [RowTask(prepared, seed, reference=role) for role in ROLES]
        for entry in recipe.methods:
            if runs_on(entry, name):
                tasks += [
                    RowTask(prepared, seed, None, entry, searched[name, entry.row], run)
                    for run in range(_unlearn_seeds(entry, recipe))
                ]
    return tasks


def _design_tasks(sets: Sequence[PreparedSet], recipe: BenchmarkRecipe) -> list[DesignTask]:
    """Return what designs are trained on what, the same original for one set after the other."""
    return [
        DesignTask(prepared, entry, seed)
        for entry in recipe.designs
        for prepared in sets
        if runs_on(entry, prepared.entry.name)
        for seed in prepared.pools[ROLES[0]].seeds
    ]


def _summary(
    sets: Sequence[PreparedSet],
    rows: Sequence[Row],
    searched: dict[tuple[str, str], Searched],
    bench: Bench,
) -> BenchmarkSummary:
    """Summarise all rows, forget set by forget set."""
    recipe, grouped, found = bench.recipe, rows_by_set(rows), []
    for prepared in sets:
        name = prepared.entry.name
        by_name = grouped.get(name, {})
        logits = {
            row.key: read_logits(bench.logits_file(row.key))
            for several in by_name.values()
            for row in several
            if row.status == "ok"
        }
        chosen = {row: one for (of, row), one in searched.items() if of == name}
        found.append(summarise_set(name, by_name, chosen, _pool_measure(logits, prepared.sets)))
    return BenchmarkSummary(
        recipe.name,
        recipe.digest,
        "benchmark",
        {"train": recipe.seeds, "unlearn": recipe.unlearn_seeds},
        tuple(found),
        bench.environment,
    )


def _pool_measure(logits: Mapping[str, Logits], sets: MeasuredSets) -> PoolMeasure:
    """Return what measures pools by the logits of their rows, which are given by key."""
    return lambda own, target: measure_pool(
        [logits[row.key] for row in own], [logits[row.key] for row in target], sets
    )


def _names(recipe: BenchmarkRecipe) -> list[str]:
    return [entry.name for entry in recipe.forget_sets]


def _unlearn_seeds(entry: MethodEntry, recipe: BenchmarkRecipe) -> int:
    return 1 if METHODS[entry.method].deterministic else recipe.unlearn_seeds
