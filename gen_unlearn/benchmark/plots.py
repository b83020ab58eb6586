"""Plots of a benchmark: privacy and forgetting against utility against cost, one point for each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gen_unlearn.benchmark.catalogue import MetricDefinition, metric_definition
from gen_unlearn.benchmark.labels import place_labels
from gen_unlearn.benchmark.summary import RETRAINED, SECOND_RETRAINED, Kind, MethodSummary, SetSummary
from gen_unlearn.report.svg import calm_axes, colour, drawing, inline_svg

PRIVACY = (
    "ulira.loo.auc",
    "rmia.ratio.auc",
    "mia_pop.margin.auc",
    "mia_pop.loss.auc",
    "mia_pop.confidence.auc",
    "mia.lira.auc",
    "mia.pia.auc",
    "mia.loss.auc",
)
"""Metrics that stand for privacy in a plot: the first that was measured is taken."""

UTILITY = ("gap.acc.test", "gap.acc.heldout", "fd.test")
GAP = ("avg_gap.optml", "gap.acc.forget", "gap.acc.test", "fd.retrained")
FORGETTING = ("recognised.forgotten", "extracted.forget")
COST = ("cost.passes", "cost.seconds")

KIND_VARIABLES: dict[Kind, str] = {"reference": "before", "method": "after", "design": "extra-1"}
"""Kind of a method -> variable of the style sheet that colours it; retrained models have their own."""

RETRAINED_VARIABLE = "oracle"

_SIZE = (5.4, 4.3)  # inches


@dataclass(frozen=True)
class Point:
    """A method in a plot: two values with the half-widths of their intervals."""

    name: str
    variable: str
    x: float
    y: float
    x_half: float
    y_half: float
    competes: bool


@dataclass(frozen=True)
class BenchmarkPlot:
    """A drawn plot with its heading and how to read it."""

    heading: str
    svg: Markup
    remark: str


def benchmark_plots(summary: SetSummary) -> list[BenchmarkPlot]:
    """Draw what was measured of privacy and of forgetting against utility and cost, and gap against cost."""
    privacy, utility, gap, cost = (_first(summary, ids) for ids in (PRIVACY, UTILITY, GAP, COST))
    forgetting = _first(summary, FORGETTING)
    wanted = (
        ("Privacy against utility", utility, privacy),
        ("Gap to retraining against cost", cost, gap),
        ("Privacy against cost", cost, privacy),
        ("Forgetting against utility", utility, forgetting),
        ("Forgetting against cost", cost, forgetting),
    )
    plots = []
    for heading, across, up in wanted:
        if across is not None and up is not None and across != up:
            points = plot_points(summary, across, up)
            if points:
                svg = draw_points(points, metric_definition(across), metric_definition(up), heading)
                aim = _aim(points, metric_definition(up))
                remark = _remark(metric_definition(across), metric_definition(up), aim)
                plots.append(BenchmarkPlot(heading, svg, remark))
    return plots


def plot_points(summary: SetSummary, across: str, up: str) -> list[Point]:
    """Return a point for each method that has both metrics; retraining is at distance 0 from itself."""
    points = []
    for method in summary.methods:
        x, y = _value(method, across), _value(method, up)
        if x is not None and y is not None:
            retrained = method.name in (RETRAINED, SECOND_RETRAINED)
            variable = RETRAINED_VARIABLE if retrained else KIND_VARIABLES[method.kind]
            points.append(Point(method.name, variable, x[0], y[0], x[1], y[1], method.kind == "method"))
    return points


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Return the competing points that no other beats in both values, by ascending `x`; lower is better."""
    front: list[Point] = []
    for point in sorted((each for each in points if each.competes), key=lambda each: (each.x, each.y)):
        if not front or point.y < front[-1].y:
            front.append(point)
    return front


def draw_points(
    points: Sequence[Point], across: MetricDefinition, up: MetricDefinition, heading: str
) -> Markup:
    """Draw points with their 95 % intervals and names; a cost is on a logarithmic scale."""
    with drawing(f"{heading} {across.id} {up.id}", font_size=9.0):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if across.role == "cost":
            points = _on_log_scale(axes, points)
            if up.role == "distance":
                _draw_front(axes, points)
        _draw_retraining(axes, points, up)
        for point in points:
            _draw_point(axes, point)
        axes.set_xlabel(_axis_label(across), color=colour("quiet"))
        axes.set_ylabel(_axis_label(up), color=colour("quiet"))
        calm_axes(axes, "both")
        axes.margins(0.1)
        places = [(point.x, point.y, point.name, colour(point.variable)) for point in points]
        place_labels(figure, axes, places)
        return inline_svg(figure, f"{heading}: {_described(points)}")


def _draw_point(axes: Axes, point: Point) -> None:
    """Draw a dot with its two intervals; a retrained model is a diamond."""
    hue = colour(point.variable)
    axes.errorbar(
        point.x,
        point.y,
        xerr=point.x_half or None,
        yerr=point.y_half or None,
        fmt="none",
        ecolor=hue,
        elinewidth=0.9,
        alpha=0.45,
    )
    marker = "D" if point.variable == RETRAINED_VARIABLE else "o"
    hollow = point.name == SECOND_RETRAINED
    face = "none" if hollow else hue
    axes.plot([point.x], [point.y], marker, markersize=6, color=hue, markerfacecolor=face, zorder=3)


def _draw_retraining(axes: Axes, points: Sequence[Point], up: MetricDefinition) -> None:
    """Draw the line to aim at: of a level that of retraining if it has one, otherwise the floor."""
    aim = _aim(points, up)
    for point in points:
        if point.name == aim:
            axes.axhline(point.y, color=colour(RETRAINED_VARIABLE), linewidth=1.1, linestyle=":", zorder=1)


def _aim(points: Sequence[Point], up: MetricDefinition) -> str | None:
    """Return whose value the line is: for a pool, which has no retrained value, that of the second one."""
    names = {point.name for point in points}
    wanted = (RETRAINED, SECOND_RETRAINED) if up.role == "level" else (SECOND_RETRAINED,)
    return next((name for name in wanted if name in names), None)


def _draw_front(axes: Axes, points: Sequence[Point]) -> None:
    """Draw the Pareto front as steps."""
    front = pareto_front(points)
    xs, ys = [point.x for point in front], [point.y for point in front]
    axes.step(xs, ys, where="post", color=colour("quiet"), linewidth=1.0, linestyle="--", zorder=1)


def _on_log_scale(axes: Axes, points: Sequence[Point]) -> list[Point]:
    """Make the x axis logarithmic; a cost of 0 stands at a third of the least other one."""
    least = min((point.x for point in points if point.x > 0), default=1.0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
    return [
        Point(each.name, each.variable, each.x or least / 3, each.y, 0.0, each.y_half, each.competes)
        for each in points
    ]


def _first(summary: SetSummary, metrics: Sequence[str]) -> str | None:
    """Return the first metric that a competing method has."""
    cells = [method.cells for method in summary.methods if method.kind != "reference"]
    return next((metric for metric in metrics if any(metric in each for each in cells)), None)


def _value(method: MethodSummary, metric: str) -> tuple[float, float] | None:
    """Return a value and its half-width, 0 where it has none."""
    cell = method.cells.get(metric)
    if cell is not None:
        return cell.value, cell.half_width or 0.0
    if method.name == RETRAINED and metric_definition(metric).role == "distance":
        return 0.0, 0.0
    return (100.0, 0.0) if method.name in (RETRAINED, SECOND_RETRAINED) and metric == "cost.passes" else None


def _axis_label(definition: MetricDefinition) -> str:
    unit = f", {definition.unit}" if definition.unit else ""
    kind = ", logarithmic" if definition.role == "cost" else ""
    return f"{definition.id}{unit} [{definition.tier}]{kind}"


def _remark(across: MetricDefinition, up: MetricDefinition, aim: str | None) -> str:
    """Say where the best place of a plot is."""
    line = {
        RETRAINED: "The dotted line is the retrained model",
        SECOND_RETRAINED: "The dotted line is the floor, the second retrained model",
        None: "There is no retrained model to compare with",
    }[aim]
    level = up.role == "level"
    where = ": the aim is the line, not below it." if level else ". Lower is nearer to retraining."
    front = " Dashed: the Pareto front." if across.role == "cost" and up.role == "distance" else ""
    zero = " A cost of 0 stands at the left edge." if across.role == "cost" else ""
    return line + where + " Further left is better." + front + zero


def _described(points: Sequence[Point]) -> str:
    """Say in words what a plot shows."""
    finite = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    return ", ".join(f"{point.name} {point.x:.3g} and {point.y:.3g}" for point in finite)
