"""Figures as inline SVG, coloured by the variables of the page's style sheet."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from typing import Literal

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_VARIABLES = (
    "before", "after", "oracle", "random", "extra-1", "extra-2", "extra-3", "text", "quiet", "rule"
)  # fmt: skip

_PLACEHOLDERS = {variable: f"#{number:06x}" for number, variable in enumerate(_VARIABLES, start=1)}
"""Variables of the style sheet -> colours drawn, whose place they take, so that a plot follows the theme."""


def colour(variable: str) -> str:
    """Return the colour to draw with for a variable of the style sheet.

    Raises:
        KeyError: there is no such variable.
    """
    return _PLACEHOLDERS[variable]


def drawing(salt: str, font_size: float) -> AbstractContextManager[None]:
    """Return the settings under which a figure is made and rendered; `salt` differs from plot to plot."""
    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": font_size})


def calm_axes(axes: Axes, grid: Literal["x", "both"]) -> None:
    """Leave only the labels and the grid lines of one axis or both."""
    axes.tick_params(axis="both", which="both", length=0, colors=colour("text"))
    axes.grid(axis=grid, color=colour("rule"), linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def inline_svg(figure: Figure, description: str) -> Markup:
    """Render a figure as an ``<svg>`` element without prologue, metadata, fixed size or fixed colours."""
    file = io.StringIO()
    metadata = dict.fromkeys(["Creator", "Date", "Format", "Type"])
    figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (xmlns(:xlink)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # names repeat from plot to plot, and nothing refers to them
    svg = re.sub(r'<svg width="[^"]*" height="[^"]*"', "<svg", svg, count=1)
    for variable, placeholder in _PLACEHOLDERS.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    label = Markup('<svg role="img" aria-label="{}"').format(description)
    return Markup(svg.replace("<svg", label, 1))
