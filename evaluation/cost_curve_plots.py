"""Draw cost curves: a column for each variable, time above memory, exponents in the colours of the lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

if TYPE_CHECKING:
    from evaluation.cost_curves import Curve, Exponent

_COLOURS = ("#1f4e79", "#b5541c", "#4a7c3a")
_SECONDS = {1e-6: "µs", 1e-3: "ms", 1.0: "s"}
_BYTES = {1.0: "B", 1e3: "kB", 1e6: "MB", 1e9: "GB"}
_HEADROOM = 0.5
_LEAST_RANGE = 100.0


def draw_curves(curves: Sequence[Curve], path: Path) -> None:
    """Write one picture of all curves."""
    variables = list(dict.fromkeys(curve.variable for curve in curves))
    figure = Figure(figsize=(3.4 * len(variables), 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(variables), squeeze=False)
    for column, variable in enumerate(variables):
        drawn = [curve for curve in curves if curve.variable == variable]
        time, memory = grid[0, column], grid[1, column]
        for place, curve in enumerate(drawn):
            _draw(time, place, curve, curve.seconds, curve.work, curve.time_exponent)
            named = f"{curve.work}, {curve.memory_is}" if len(drawn) > 1 else curve.memory_is
            _draw(memory, place, curve, curve.memory, named, curve.memory_exponent)
        for axes, units in ((time, _SECONDS), (memory, _BYTES)):
            _lay_out(axes, drawn[0].sizes, units)
            axes.set_xlabel(variable, fontsize=9)
    grid[0, 0].set_ylabel("time", fontsize=9)
    grid[1, 0].set_ylabel("memory", fontsize=9)
    figure.savefig(path, dpi=150)


def _draw(
    axes: Axes, place: int, curve: Curve, values: Sequence[float], name: str, exponent: Exponent
) -> None:
    """Draw one line; write its name and exponent at the top."""
    axes.plot(curve.sizes, values, "o-", color=_COLOURS[place], markersize=3.5, linewidth=1.4)
    text = axes.text(
        0.03,
        0.98 - 0.085 * place,
        f"{name}: exponent {exponent.value:.2f} ± {exponent.standard_error:.2f}",
        transform=axes.transAxes,
        va="top",
        fontsize=7,
        color=_COLOURS[place],
    )
    text.set_in_layout(False)


def _lay_out(axes: Axes, sizes: Sequence[int], units: dict[float, str]) -> None:
    """Use logarithms over two decades at least, write numbers with units, leave room for the text."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    wider = max(1.0, (_LEAST_RANGE * low / high) ** 0.5)
    low, high = low / wider, high * wider
    axes.set_ylim(low, high * (high / low) ** _HEADROOM)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _with_unit(value, units)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)


def _with_unit(value: float, units: dict[float, str]) -> str:
    """Write a number with the largest unit that it has one of."""
    factor = max((each for each in units if value >= 0.999 * each), default=min(units))
    return f"{value / factor:.3g} {units[factor]}"
