"""Plots as inline SVG, coloured by the variables of the page's style sheet."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.report.numbers import format_floor, format_value, is_share, unit_of

STATES = ("before", "after", "oracle")
"""States of the model, in the order in which they are shown."""

_STYLE_VARIABLES = {
    "#000001": "--before",
    "#000002": "--after",
    "#000003": "--oracle",
    "#000004": "--text",
    "#000005": "--rule",
}
"""Colours drawn -> variables of the style sheet that take their place, so that a plot follows the theme."""

_BAR_COLOURS = dict(zip(STATES, _STYLE_VARIABLES, strict=False))
_TEXT, _RULE = "#000004", "#000005"


def state_bars(scorecard: Scorecard, quantity: str) -> Markup | None:
    """Draw the measures ``<quantity>_before``, ``_after`` and ``_oracle`` as bars with error and floor.

    Returns:
        An ``<svg>`` element, or `None` if fewer than two of them were measured.
    """
    measures = {measure.name: measure for measure in scorecard.measures if math.isfinite(measure.value)}
    states = [state for state in STATES if f"{quantity}_{state}" in measures]
    if len(states) < 2:
        return None
    shown = [measures[f"{quantity}_{state}"] for state in states]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": quantity, "font.size": 10.0}):
        figure = Figure(figsize=(4.4, 0.44 * len(states) + 0.35), layout="constrained")
        axes = figure.add_subplot()
        _draw_bars(axes, states, shown)
        _style_axes(axes, states, unit_of(quantity))
        described = ", ".join(
            f"{state} {format_value(measure)}" for state, measure in zip(states, shown, strict=True)
        )
        return _inline_svg(figure, f"Bar plot of {quantity}: {described}")


def _draw_bars(axes: Axes, states: Sequence[str], measures: Sequence[Measure]) -> None:
    """Draw one horizontal bar per state, its standard error, its floor and its number."""
    factor = 100 if is_share(measures[0].name) else 1
    reach = max(max(m.value + (m.standard_error or 0), m.floor or 0) for m in measures) or 1.0
    for row, (state, measure) in enumerate(zip(states, measures, strict=True)):
        value, error = factor * measure.value, factor * (measure.standard_error or 0)
        axes.barh(row, value, height=0.62, color=_BAR_COLOURS[state])
        if error:
            axes.errorbar(value, row, xerr=error, color=_TEXT, elinewidth=1.2, capsize=3)
        label_at = value + error
        if measure.floor is not None:
            floor = factor * measure.floor
            axes.plot([floor, floor], [row - 0.42, row + 0.42], color=_TEXT, linewidth=1.2, linestyle=":")
            label_at = max(label_at, floor)
        axes.annotate(
            format_value(measure),
            (label_at, row),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=_TEXT,
        )
    axes.set_xlim(0, 1.35 * factor * reach)


def _style_axes(axes: Axes, states: Sequence[str], unit: str) -> None:
    """Leave only what is needed to read the bars."""
    axes.set_yticks(range(len(states)), labels=list(states))
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
    axes.tick_params(axis="both", length=0, colors=_TEXT)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _inline_svg(figure: Figure, description: str) -> Markup:
    """Render a figure as an ``<svg>`` element without prologue, metadata, fixed size or fixed colours."""
    file = io.StringIO()
    metadata = dict.fromkeys(["Creator", "Date", "Format", "Type"])
    figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (xmlns(:xlink)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # names repeat from plot to plot, and nothing refers to them
    svg = re.sub(r'<svg width="[^"]*" height="[^"]*"', "<svg", svg, count=1)
    for colour, variable in _STYLE_VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    label = Markup('<svg role="img" aria-label="{}"').format(description)
    return Markup(svg.replace("<svg", label, 1))


def floor_caption(scorecard: Scorecard, quantity: str) -> str:
    """Say what the dotted line in the bars of `quantity` is, or nothing where there is none."""
    floors: dict[str, None] = {}
    for measure in scorecard.measures:
        if measure.name in {f"{quantity}_{state}" for state in STATES} and measure.floor is not None:
            floors[f"{format_floor(measure)}, {measure.floor_definition}".rstrip(", ")] = None
    return "Dotted line: the floor (" + "; ".join(floors) + ")." if floors else ""
