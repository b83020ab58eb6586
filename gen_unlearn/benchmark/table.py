"""The table of one forget set: every cell with its interval, its floor and its verdict; and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gen_unlearn.benchmark.catalogue import TIERS, MetricDefinition, metric_definition
from gen_unlearn.benchmark.statistics import LEAST_SEEDS_TO_RANK, Ranking, Test, ranking
from gen_unlearn.benchmark.summary import (
    ORIGINAL,
    RETRAINED,
    SECOND_RETRAINED,
    BenchmarkSummary,
    Cell,
    MethodSummary,
    Regime,
    SetSummary,
)

Place: TypeAlias = Literal["best", "tie for best", ""]

ALIKE_MARK = "≈"
"""Marks a value that cannot be told from retraining's."""

_ROUNDING = 1e-9
"""A half-width below this share of its value is none."""

_PLACE_MARKS: dict[Place, str] = {"best": "★", "tie for best": "☆", "": ""}

LEGEND = (
    f"{ALIKE_MARK} indistinguishable from retraining (not: better than it). "
    f"{_PLACE_MARKS['best']} best; {_PLACE_MARKS['tie for best']} tie for best: paired tests with Holm's "
    "correction find no difference to the best mean. With few seeds or images intervals are wide, and much "
    "is indistinguishable. A model that is designed to forget has its target and floor in retrained models "
    "of its own kind, and is not ranked with the others. - not measured: RMIA and metrics of pools "
    "(A, energy_pg) take 5 training seeds, mia.lira.auc takes 2."
)


@dataclass(frozen=True)
class CellView:
    """A cell as it is printed: its number, and what is said about it."""

    text: str
    alike: bool
    place: Place
    note: str

    @property
    def marked(self) -> str:
        """The number with its marks."""
        return " ".join(filter(None, (self.text, ALIKE_MARK if self.alike else "", _PLACE_MARKS[self.place])))


@dataclass(frozen=True)
class RowView:
    """A method with a cell, or `None`, for each column."""

    method: MethodSummary
    cells: tuple[CellView | None, ...]

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is said about the method as a whole: that it is infeasible, and its failed runs."""
        infeasible = ("infeasible: no trial came within the tolerance",) if self.method.infeasible else ()
        said = tuple(f"failed: {reason}" for reason in together(self.method.failed))
        return infeasible + self.method.search_notes + said


@dataclass(frozen=True)
class OrderView:
    """The methods by one metric: a ranking, or why there is none, and the methods that are left out."""

    metric: MetricDefinition
    ranking: Ranking | None
    reason: str
    unranked: tuple[str, ...]


@dataclass(frozen=True)
class SetTable:
    """One forget set: columns, rows, and the order by each distance and score."""

    forget_set: str
    columns: tuple[str, ...]
    definitions: tuple[MetricDefinition, ...]
    rows: tuple[RowView, ...]
    orders: tuple[OrderView, ...]


def set_table(summary: SetSummary, metrics: Sequence[str], regime: Regime, test: Test = "t") -> SetTable:
    """Lay out the chosen metrics of one forget set.

    Raises:
        ValueError: a metric is not known; the original or, in the benchmark regime, a retrained model is
            missing; or a distance or score has no floor.
    """
    _require_references(summary, regime)
    definitions = tuple(metric_definition(metric) for metric in metrics)
    chosen = dict(zip(metrics, definitions, strict=True))
    _require_floors(summary, chosen)
    orders = {
        metric: _order(summary, metric, definition, test)
        for metric, definition in chosen.items()
        if definition.needs_floor
    }
    rows = tuple(
        RowView(
            method, tuple(_view(method, metric, chosen[metric], orders.get(metric)) for metric in metrics)
        )
        for method in summary.methods
    )
    return SetTable(summary.forget_set, tuple(metrics), definitions, rows, tuple(orders.values()))


def together(failed: Sequence[str]) -> tuple[str, ...]:
    """Say a reason once for all seeds that failed by it: ``"seeds 0, 1: the loss is not finite"``."""
    seeds: dict[str, list[str]] = {}
    for entry in failed:
        seed, _, reason = entry.partition(": ")
        seeds.setdefault(reason, []).append(seed.removeprefix("seed "))
    return tuple(
        f"seed{'s' if len(several) > 1 else ''} {', '.join(several)}: {reason}"
        for reason, several in seeds.items()
    )


def format_number(value: float, half_width: float | None) -> str:
    """Write a number as ``3.28 ± 0.41``: to the second significant digit of its half-width."""
    if half_width is None:
        return f"{value:.4g} ± ?"
    if half_width <= _ROUNDING * abs(value):
        return f"{value:.3g} ± 0"
    decimals = max(0, 1 - math.floor(math.log10(half_width)))
    if round(half_width, decimals) >= 10.0 ** (2 - decimals):  # 0.0996 rounds to 0.10, not 0.100
        decimals = max(0, decimals - 1)
    return f"{value:.{decimals}f} ± {half_width:.{decimals}f}"


def markdown_table(table: SetTable) -> str:
    """Write the table of one forget set as Markdown, with its legend, orders and failed runs."""
    heads = [
        f"`{metric}` [{d.tier}]{_unit(d)}" for metric, d in zip(table.columns, table.definitions, strict=True)
    ]
    lines = [_line(["method", *heads]), _line(["---", *("---:" for _ in heads)])]
    for row in table.rows:
        cells = ["-" if cell is None else cell.marked for cell in row.cells]
        if row.method.failed and not row.method.cells:
            cells = ["failed"] * len(cells)
        lines.append(_line([_row_name(row.method), *cells]))
    lines += ["", LEGEND, ""]
    lines += [f"- {row.method.name}: {remark}" for row in table.rows for remark in row.remarks]
    lines += [f"- {order_text(order)}" for order in table.orders]
    return "\n".join(lines) + "\n"


def markdown_benchmark(summary: BenchmarkSummary, metrics: Sequence[str], test: Test = "t") -> str:
    """Write a whole benchmark as Markdown, a table for each forget set."""
    seeds = ", ".join(f"{count} {name}" for name, count in summary.seeds.items())
    lines = [
        f"# {summary.name}",
        "",
        f"Regime: {summary.regime}. Seeds: {seeds}. Recipe `{summary.recipe_digest}`. Every value is the "
        "mean over training seeds ± half the width of its 95 % t interval, or that of a pool of models with "
        "the interval of other images and models. Trust tiers: "
        + "; ".join(f"[{tier}] {words}" for tier, words in TIERS.items())
        + f". The row *{SECOND_RETRAINED}* holds the floors.",
        "",
        *(f"- {note}" for note in summary.notes),
    ]
    for each in summary.sets:
        table = set_table(each, metrics, summary.regime, test)
        lines += ["", f"## {each.forget_set}", "", markdown_table(table).rstrip("\n")]
    return "\n".join(lines) + "\n"


def order_text(order: OrderView) -> str:
    """Say in a line how the methods are ordered by a metric: letters in brackets name the ties."""
    left_out = f"; not ranked: {', '.join(order.unranked)}" if order.unranked else ""
    if order.ranking is None:
        return f"`{order.metric.id}`: no ranking, {order.reason}{left_out}"
    names = [f"{name} ({tie_letters(order.ranking, name)})" for name in order.ranking.order]
    return f"`{order.metric.id}`, best mean first, the same letter is a tie: {', '.join(names)}{left_out}"


def tie_letters(ranked: Ranking, name: str) -> str:
    """Return the letters of the ties that a method is in; methods that share one cannot be told apart."""
    places = [place for place, tie in enumerate(ranked.ties) if name in tie]
    return "".join(chr(ord("a") + place) if place < 26 else f"[{place + 1}]" for place in places)


def _order(summary: SetSummary, metric: str, definition: MetricDefinition, test: Test) -> OrderView:
    """Rank the methods that have no failed run by a distance or score.

    Designs are not ranked: their distances are to retrained models of their own kind.
    """
    competing = [each for each in summary.methods if each.kind == "method"]
    having = [each for each in competing if metric in each.cells]
    if any(each.cells[metric].models is not None for each in having):
        reason = "pools of models have one value for all seeds, and no paired tests"
        missing = tuple(each.name for each in competing if each not in having)
        return OrderView(definition, None, reason, missing)
    seeds = max((each.cells[metric].seeds for each in having), key=len, default=())
    whole = [each for each in having if not each.failed and each.cells[metric].seeds == seeds]
    left_out = tuple(each.name for each in competing if each not in whole)
    if not whole or len(seeds) < LEAST_SEEDS_TO_RANK:
        reason = (
            f"{len(seeds)} training seeds; it takes {LEAST_SEEDS_TO_RANK}" if whole else "nothing to rank"
        )
        return OrderView(definition, None, reason, left_out)
    ranked = ranking(
        {each.name: [[value] for value in each.cells[metric].values] for each in whole},
        "higher" if definition.direction == "higher" else "lower",
        test=test,
        alike=[each.name for each in whole if each.cells[metric].indistinguishable(definition.role)],
    )
    return OrderView(definition, ranked, "", left_out)


def _view(
    method: MethodSummary, metric: str, definition: MetricDefinition, order: OrderView | None
) -> CellView | None:
    cell = method.cells.get(metric)
    if cell is None and method.name == RETRAINED and definition.role == "distance":
        return CellView("0", False, "", "by definition")
    if cell is None:
        return None
    alike = method.kind != "reference" and cell.indistinguishable(definition.role)
    place: Place = ""
    if order is not None and order.ranking is not None and method.name in order.ranking.leaders:
        place = "best" if len(order.ranking.leaders) == 1 else "tie for best"
    if (
        order is not None
        and order.ranking is not None
        and len(order.ranking.leaders) == len(order.ranking.order)
    ):
        place = ""  # where all tie there is no best
    return CellView(format_number(cell.value, cell.half_width), alike, place, _note(cell, definition))


def _note(cell: Cell, definition: MetricDefinition) -> str:
    """Say what lies behind a cell: floor, components of the variance, and its own note."""
    parts = [f"{cell.models or len(cell.seeds)} training seeds"]
    if cell.floor is not None:
        level = RETRAINED if cell.models is None else SECOND_RETRAINED
        name = level if definition.role == "level" else "floor"
        excess = format_number(cell.value - cell.floor, cell.excess_half_width)
        parts.append(f"{name} {cell.floor:.4g}, paired difference {excess}")
    for name, sigma in (("training", cell.sigma_train), ("unlearning", cell.sigma_unlearn)):
        if sigma is not None:
            parts.append(f"sd of {name} {sigma:.2g}")
    return "; ".join(filter(None, (*parts, cell.note)))


def _require_references(summary: SetSummary, regime: Regime) -> None:
    needed = (ORIGINAL, RETRAINED, SECOND_RETRAINED) if regime == "benchmark" else (ORIGINAL,)
    missing = [name for name in needed if summary.method(name) is None]
    if missing:
        raise ValueError(
            f"expected rows of {', '.join(needed)} for {summary.forget_set!r}, got none of "
            f"{', '.join(missing)}; a table without them says nothing"
        )


def _require_floors(summary: SetSummary, chosen: Mapping[str, MetricDefinition]) -> None:
    second = summary.method(SECOND_RETRAINED)
    for metric, definition in chosen.items():
        for method in summary.methods:
            cell = method.cells.get(metric)
            if cell is not None and definition.needs_floor and second and metric not in second.cells:
                raise ValueError(f"expected {metric} of the {SECOND_RETRAINED} model, the floor, got none")
            if cell is not None and definition.needs_floor and cell.floor is None:
                raise ValueError(
                    f"expected a floor for {metric} of {method.name} on {summary.forget_set!r}, got none; "
                    "measure the second retrained model as well"
                )


def _row_name(method: MethodSummary) -> str:
    extra = {RETRAINED: "target", SECOND_RETRAINED: "floor", ORIGINAL: "do nothing"}.get(method.name)
    return f"*{method.name}* ({extra})" if extra else method.name


def _unit(definition: MetricDefinition) -> str:
    return f" ({definition.unit})" if definition.unit else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
