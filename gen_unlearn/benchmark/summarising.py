"""From the rows of a benchmark to its summary: means over seeds, floors, and metrics of whole pools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gen_unlearn.benchmark.catalogue import metric_definition
from gen_unlearn.benchmark.pools import pool_cell
from gen_unlearn.benchmark.prepared_sets import ROLES
from gen_unlearn.benchmark.rows import Row
from gen_unlearn.benchmark.search import Searched
from gen_unlearn.benchmark.summary import (
    RETRAINED,
    SECOND_RETRAINED,
    Cell,
    MethodSummary,
    SetSummary,
    summarise_cell,
)
from gen_unlearn.metrics.estimate import Estimate

BySeed = dict[str, dict[int, float]]
"""Metric -> training seed -> value."""

_COSTS = ("passes", "seconds")


PoolMeasure = Callable[[Sequence[Row], Sequence[Row]], Mapping[str, Estimate]]
"""Measures the models of some rows, one of each seed, against those of others: metric -> value."""


def summarise_set(
    name: str,
    rows: Mapping[str, Sequence[Row]],
    searched: Mapping[str, Searched],
    measure: PoolMeasure | None = None,
) -> SetSummary:
    """Summarise one forget set.

    Args:
        name: of the set.
        rows: row name -> its rows, of all seeds, failed ones too; in the order to show.
        searched: row name -> what its search chose.
        measure: of whole pools of models, unlearned against retrained ones; `None` for none.
    """
    targets = {"": _target("", rows, measure)}
    for of, several in rows.items():
        if several[0].kind == "design":
            targets[of] = _target(f"{of}, ", rows, measure)
    digests = {row.digests["forget"] for several in rows.values() for row in several}
    methods = tuple(
        _summarise_method(of, several, targets.get(of, targets[""]), searched.get(of), measure)
        for of, several in rows.items()
        if several[0].kind != "reference" or of in ROLES
    )
    return SetSummary(name, tuple(sorted(digests)), methods)


@dataclass(frozen=True)
class _Target:
    """What a method is to reach: retrained models of the same kind, and how far a second one lies from them.

    Attributes:
        levels: metric -> training seed -> value of the retrained model.
        floors: metric -> training seed -> value of the second retrained one.
        pool: rows of the retrained models, one of each seed.
        pool_floors: metric of pools -> value of the second retrained ones.
    """

    levels: BySeed
    floors: BySeed
    pool: Sequence[Row]
    pool_floors: Mapping[str, Estimate]


def _target(prefix: str, rows: Mapping[str, Sequence[Row]], measure: PoolMeasure | None) -> _Target:
    """Return the target that the retrained models with this prefix to their names are."""
    first, second = (rows.get(f"{prefix}{role}", ()) for role in (RETRAINED, SECOND_RETRAINED))
    pool = _one_of_each_seed(first)
    floors = {} if measure is None else measure(_one_of_each_seed(second), pool)
    return _Target(_by_seed(first), _by_seed(second), pool, floors)


def _summarise_method(
    name: str,
    rows: Sequence[Row],
    target: _Target,
    searched: Searched | None,
    measure: PoolMeasure | None,
) -> MethodSummary:
    done = [row for row in rows if row.status == "ok"]
    cells: dict[str, Cell] = {}
    for metric in dict.fromkeys(metric for row in done for metric in row.metrics):
        values: dict[int, list[float]] = {}
        for row in done:
            if metric in row.metrics:
                values.setdefault(row.seeds["train"], []).append(row.metrics[metric])
        role = metric_definition(metric).role
        aim = (target.levels if role == "level" else target.floors).get(metric, {})
        with_aim = {seed: found for seed, found in values.items() if seed in aim}
        note = (
            None if len(with_aim) in (0, len(values)) else "seeds whose retrained model failed are left out"
        )
        cells[metric] = summarise_cell(with_aim or values, aim if with_aim else None, note)
    for cost in _COSTS:
        spent: dict[int, list[float]] = {}
        for row in done:
            value = row.cost.get(cost)
            if value is not None:
                spent.setdefault(row.seeds["train"], []).append(value)
        if spent:
            cells[f"cost.{cost}"] = summarise_cell(spent, None)
    if name != RETRAINED and measure is not None:
        pool = _one_of_each_seed(rows)
        for metric, found in measure(pool, target.pool).items():
            cells[metric] = pool_cell(found, target.pool_floors.get(metric), len(pool))
    first = rows[0]
    return MethodSummary(
        name,
        first.kind,
        first.settings,
        cells,
        tuple(f"seed {row.seeds['train']}: {row.error}" for row in rows if row.status != "ok"),
        None if searched is None or not searched.passes else searched.passes,
        searched is not None and searched.infeasible,
        () if searched is None else searched.notes,
    )


def _by_seed(rows: Sequence[Row]) -> BySeed:
    """Return metric -> training seed -> value of reference rows, which have one run for each seed."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for metric, value in row.metrics.items() if row.status == "ok" else ():
            found.setdefault(metric, {})[row.seeds["train"]] = value
    return found


def _one_of_each_seed(rows: Sequence[Row]) -> list[Row]:
    """Return one row of each training seed that was measured, ascending."""
    first: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: (row.seeds["train"], row.seeds["unlearn"])):
        if row.status == "ok":
            first.setdefault(row.seeds["train"], row)
    return list(first.values())
