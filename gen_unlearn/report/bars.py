"""Bars that compare the states of a model, with 95 % intervals and floors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.report.numbers import factor_of, format_floor, format_value, is_share, unit_of
from gen_unlearn.report.states import States, measure_suffix
from gen_unlearn.report.svg import calm_axes, colour, drawing, inline_svg

NORMAL_95 = 1.96
"""Standard errors on either side that hold 95 % of a normal distribution."""

_WIDTH = 3.5  # inches
_LABEL_WIDTH = 11  # letters

CHANCE_AUC = 0.5
"""Area under the ROC curve of an attacker who guesses."""


@dataclass(frozen=True)
class Bar:
    """One measure of one state."""

    state: str
    measure: Measure


def state_bars(scorecard: Scorecard, quantity: str, states: States) -> Markup | None:
    """Draw the measures ``<quantity>_before``, ``_after``, ``_oracle`` and so on, one bar for each state.

    An area under a ROC curve is drawn as a dot beside the line of chance, since its scale does not begin
    at 0.

    Returns:
        An ``<svg>`` element, or `None` if fewer than two states were measured.
    """
    bars = bars_of(scorecard, quantity, states)
    return draw_bars(bars, quantity, states) if len(bars) > 1 else None


def bars_of(scorecard: Scorecard, quantity: str, states: States) -> list[Bar]:
    """Find the finite measures of a quantity, one for each state at most."""
    measures = {measure.name: measure for measure in scorecard.measures if math.isfinite(measure.value)}
    names = {state: f"{quantity}_{measure_suffix(state)}" for state in states.names}
    return [Bar(state, measures[name]) for state, name in names.items() if name in measures]


def draw_bars(bars: Sequence[Bar], quantity: str, states: States) -> Markup:
    """Draw bars of one quantity: per state a row with interval and floor, and the numbers to the right."""
    with drawing(quantity, font_size=10.0):
        figure = Figure(figsize=(_WIDTH, 0.44 * len(bars) + 0.35), layout="constrained")
        axes = figure.add_subplot()
        for row, bar in enumerate(bars):
            _draw_bar(axes, bar.measure, row, colour(states.variable(bar.state)))
        _limit(axes, bars)
        axes.set_yticks(range(len(bars)), labels=[fill(bar.state, _LABEL_WIDTH) for bar in bars])
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}{unit_of(quantity)}")
        axes.locator_params(axis="x", nbins=4)
        calm_axes(axes, "x")
        return inline_svg(figure, f"Bar plot of {quantity}: {_described(bars)}")


def interval(measure: Measure) -> tuple[float, float]:
    """Return the 95 % interval of a measure: the one in its details, else ``value ± 1.96 standard errors``.

    The interval of a share or of an area under a ROC curve does not reach beyond 0 and 1.
    """
    if {"interval_low", "interval_high"} <= measure.details.keys():
        return measure.details["interval_low"], measure.details["interval_high"]
    reach = NORMAL_95 * (measure.standard_error or 0.0)
    low, high = measure.value - reach, measure.value + reach
    if is_share(measure.name) or is_auc(measure.name):
        return max(low, min(0.0, measure.value)), min(high, max(1.0, measure.value))
    return low, high


def is_auc(name: str) -> bool:
    """Say whether a measure is an area under a ROC curve."""
    return "auc" in name.split("_")


def floor_caption(scorecard: Scorecard, quantity: str, states: States) -> str:
    """Say what the dotted line in the bars of `quantity` is; nothing where it is chance or is not there."""
    return floors_of([bar.measure for bar in bars_of(scorecard, quantity, states) if not is_auc(quantity)])


def floors_of(measures: Sequence[Measure]) -> str:
    """Say what the dotted line beside these measures is, or nothing where there is none."""
    floors: dict[str, dict[str, None]] = {}
    for measure in measures:
        if measure.floor is not None:
            floors.setdefault(measure.floor_definition, {})[format_floor(measure)] = None
    texts = [f"{', '.join(values)}: {text}".rstrip(": ") for text, values in floors.items()]
    return f"Dotted line: the floor ({'; '.join(texts)})." if texts else ""


def _draw_bar(axes: Axes, measure: Measure, row: int, hue: str) -> None:
    """Draw one horizontal bar or dot, its interval, its floor, and its number beside the axes."""
    factor = factor_of(measure)
    value, ends = factor * measure.value, [[factor * abs(end - measure.value)] for end in interval(measure)]
    if is_auc(measure.name):
        axes.plot([value], [row], marker="o", markersize=7, color=hue, linestyle="none", zorder=3)
    else:
        axes.barh(row, value, height=0.62, color=hue)
    if measure.standard_error:
        axes.errorbar(value, row, xerr=ends, fmt="none", color=colour("text"), elinewidth=1.2, capsize=3)
    floor = CHANCE_AUC if is_auc(measure.name) else measure.floor
    if floor is not None:
        axes.plot(
            [factor * floor] * 2, [row - 0.42, row + 0.42], color=colour("text"), linewidth=1.2, linestyle=":"
        )
    beside = axes.get_yaxis_transform()
    axes.text(1.03, row, format_value(measure), transform=beside, va="center", color=colour("text"))


def _limit(axes: Axes, bars: Sequence[Bar]) -> None:
    """Begin the scale at 0, or lay it around chance for an area under a ROC curve."""
    factor = factor_of(bars[0].measure)
    lows, highs = zip(*(interval(bar.measure) for bar in bars), strict=True)
    if is_auc(bars[0].measure.name):
        low, high = min(*lows, CHANCE_AUC - 0.05), max(*highs, CHANCE_AUC + 0.05)
        axes.set_xlim(max(low - 0.01, 0), min(high + 0.01, 1))
        return
    reach = max(*highs, *(bar.measure.floor or 0.0 for bar in bars)) or 1.0
    below = min(bar.measure.value for bar in bars)
    axes.set_xlim(1.1 * factor * min(below, 0.0), 1.04 * factor * reach)


def _described(bars: Sequence[Bar]) -> str:
    """Say in words what the bars show."""
    return ", ".join(f"{bar.state} {format_value(bar.measure)}" for bar in bars)
