"""Made-up summaries of a benchmark, to test what is printed of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from gen_unlearn.benchmark.catalogue import metric_definition
from gen_unlearn.benchmark.pools import pool_cell
from gen_unlearn.benchmark.summary import (
    ORIGINAL,
    RETRAINED,
    SECOND_RETRAINED,
    BenchmarkSummary,
    Cell,
    MethodSummary,
    SetSummary,
    summarise_cell,
)
from gen_unlearn.metrics.estimate import Estimate

COLUMNS = ("acc.forget", "gap.acc.forget", "gap.acc.test", "mia_pop.margin.auc", "tow", "cost.passes")

CENTRES: dict[str, tuple[float, ...]] = {
    ORIGINAL: (97.9, 13.2, 1.2, 0.56, 0.87, 0.0),
    RETRAINED: (84.7, 0.0, 0.0, 0.47, 1.0, 100.0),
    SECOND_RETRAINED: (84.7, 2.0, 1.5, 0.47, 0.97, 100.0),
}
"""Row -> mean of each of `COLUMNS`."""


def noisy(name: str, metric: str, centre: float, seeds: int, spread: float) -> dict[int, list[float]]:
    generator = np.random.default_rng(len(name) * 1000 + len(metric) + int(10 * centre))
    return {seed: [centre + spread * float(generator.standard_normal())] for seed in range(seeds)}


def cells(name: str, centres: tuple[float, ...], seeds: int) -> dict[str, Cell]:
    made = {}
    for metric, centre, target, floor in zip(
        COLUMNS, centres, CENTRES[RETRAINED], CENTRES[SECOND_RETRAINED], strict=True
    ):
        role = metric_definition(metric).role
        if name == RETRAINED and role in ("distance", "score"):
            continue
        spread = 0.0 if role == "cost" else 0.15 * max(floor, 0.05) if floor < 10 else 1.0
        aims = noisy("floor", metric, target if role == "level" else floor, seeds, spread)
        floors = None if role == "cost" else {seed: values[0] for seed, values in aims.items()}
        own = noisy(name, metric, centre, seeds, spread)
        if name == SECOND_RETRAINED and role in ("distance", "score"):
            own = aims
        made[metric] = summarise_cell(own, floors)
    return made


def small_summary(
    methods: Mapping[str, tuple[float, ...]], seeds: int = 5, designs: tuple[str, ...] = ()
) -> BenchmarkSummary:
    """Return a benchmark with one forget set, the references, these methods and one that failed."""
    references = [MethodSummary(name, "reference", {}, cells(name, CENTRES[name], seeds)) for name in CENTRES]
    rows = [
        MethodSummary(
            name,
            "design" if name in designs else "method",
            {"lr": 0.01},
            cells(name, centres, seeds),
            search_passes=150.0,
        )
        for name, centres in methods.items()
    ]
    lost = MethodSummary("diverged", "method", {"lr": 9.0}, {}, ("seed 0: the loss is not finite <nan>",))
    part = SetSummary("random & 10 %", ("ab" * 32,), (*references, *rows, lost))
    return BenchmarkSummary(
        "Digits <made up>", "cd" * 32, "benchmark", {"train": seeds, "unlearn": 1}, (part,), {"torch": "2.0"}
    )


METHODS: dict[str, tuple[float, ...]] = {
    "ft": (86.5, 9.0, 4.0, 0.53, 0.7, 6.0),
    "scrub": (85.5, 3.0, 1.0, 0.50, 0.97, 5.0),
    "ga": (70.0, 14.7, 7.0, 0.60, 0.6, 0.3),
}


def with_pools(summary: BenchmarkSummary) -> SetSummary:
    """Return the forget set with metrics of pools, which the retrained model has not."""
    part = summary.sets[0]
    methods = []
    for place, method in enumerate(part.methods):
        value, floor = Estimate(0.5 + 0.1 * (place > 2), 0.02), Estimate(0.5, 0.02)
        found = dict.fromkeys(("ulira.loo.auc", "klom.gauss.mean.forget"), pool_cell(value, floor, 5))
        has = method.cells and method.name != RETRAINED
        methods.append(replace(method, cells={**method.cells, **found}) if has else method)
    return replace(part, methods=tuple(methods))
