"""ROC curves of membership attacks: how many deleted images an attack names at how many false alarms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.report.numbers import format_value
from gen_unlearn.report.states import States, measure_suffix
from gen_unlearn.report.svg import calm_axes, colour, drawing, inline_svg

SMALLEST_SHARE = 1e-3
"""Where the axes begin at the latest; with fewer held-out images, at the first false alarm."""

_POINTS = 160


@dataclass(frozen=True)
class RocLine:
    """What is written below a panel for one state: the area under its curve and the share at 1 % alarms."""

    state: str
    area: str
    share_at_one_percent: str


@dataclass(frozen=True)
class RocPanel:
    """The curves of one attack, and their numbers."""

    attack: str
    svg: Markup
    lines: tuple[RocLine, ...]

    @property
    def has_shares(self) -> bool:
        """Say whether the share at 1 % false alarms was measured for any state."""
        return any(line.share_at_one_percent for line in self.lines)


def roc_panels(scorecard: Scorecard, states: States) -> list[RocPanel]:
    """Draw one panel for each attack, all with the same axes.

    Raises:
        ValueError: a curve has not as many true as false positive rates, or rates outside [0, 1].
    """
    curves = {
        attack: {state: _curve(attack, state, by_state[state]) for state in states.names if state in by_state}
        for attack, by_state in scorecard.roc.items()
    }
    begin = smallest_share(curve[0] for by_state in curves.values() for curve in by_state.values())
    measures = {measure.name: measure for measure in scorecard.measures}
    panels = []
    for attack, by_state in curves.items():
        lines = tuple(_line(measures, attack, state, curve) for state, curve in by_state.items())
        panels.append(RocPanel(attack, _draw_panel(attack, by_state, lines, states, begin), lines))
    return [panel for panel in panels if panel.lines]


def smallest_share(false_positive_rates: Iterable[np.ndarray]) -> float:
    """Return where the axes begin: at 0.001, or at the smallest rate above 0 if all are larger."""
    positive = [rates[rates > 0].min() for rates in false_positive_rates]
    return float(np.clip(min(positive, default=SMALLEST_SHARE), SMALLEST_SHARE, 0.1))


def area_under(false_positive_rate: np.ndarray, true_positive_rate: np.ndarray) -> float:
    """Return the area under a curve of ascending rates ``(n,)`` by the trapezoid rule."""
    steps = np.diff(false_positive_rate)
    return float(steps @ (true_positive_rate[1:] + true_positive_rate[:-1]) / 2)


def _curve(attack: str, state: str, rates: dict[str, list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return ascending false and true positive rates from (0, 0) to (1, 1)."""
    false, true = (np.asarray(rates[name], dtype=np.float64) for name in ("fpr", "tpr"))
    if false.shape != true.shape or false.ndim != 1 or not all(_are_shares(r) for r in (false, true)):
        raise ValueError(
            f"expected as many ascending rates fpr as tpr, in [0, 1], for {attack} {state}, got "
            f"{false.shape} and {true.shape}; evaluate the run again"
        )
    return np.concatenate([[0.0], false, [1.0]]), np.concatenate([[0.0], true, [1.0]])


def _are_shares(rates: np.ndarray) -> bool:
    return bool(((rates >= 0) & (rates <= 1)).all() and (np.diff(rates) >= 0).all())


def _line(
    measures: dict[str, Measure], attack: str, state: str, curve: tuple[np.ndarray, np.ndarray]
) -> RocLine:
    """Write the numbers of one curve, the area with its error where that was measured."""
    suffix = f"{measure_suffix(attack)}_{measure_suffix(state)}"
    area, share = measures.get(f"membership_auc_{suffix}"), measures.get(f"membership_tpr_{suffix}")
    return RocLine(
        state,
        format_value(area) if area else f"{area_under(*curve):.3f}",
        format_value(share) if share else "",
    )


def _draw_panel(
    attack: str,
    curves: dict[str, tuple[np.ndarray, np.ndarray]],
    lines: tuple[RocLine, ...],
    states: States,
    begin: float,
) -> Markup:
    """Draw the curves of one attack on logarithmic axes, and the diagonal of chance."""
    with drawing(f"roc {attack}", font_size=9.0):
        figure = Figure(figsize=(2.7, 2.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([begin, 1], [begin, 1], color=colour("quiet"), linewidth=1.2, linestyle=":")
        grid = np.geomspace(begin, 1, _POINTS)
        for state, (false, true) in curves.items():
            last = np.flatnonzero(np.append(np.diff(false) > 0, True))  # the highest of equal false rates
            shares = np.maximum(np.interp(grid, false[last], true[last]), begin / 10)  # a logarithm's domain
            style = "--" if state == "oracle" else "-"
            axes.plot(grid, shares, style, color=colour(states.variable(state)), linewidth=1.7)
        _style_panel(axes, begin)
        described = ", ".join(f"{line.state} area {line.area}" for line in lines)
        return inline_svg(figure, f"ROC curves of the attack {attack}: {described}")


def _style_panel(axes: Axes, begin: float) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(begin, 1)
    axes.set_ylim(begin, 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=5))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(lambda share, _: f"{100 * share:g}\u00a0%")
    axes.set_xlabel("false alarms", color=colour("quiet"))
    axes.set_ylabel("deleted images named", color=colour("quiet"))
    calm_axes(axes, "both")
    axes.tick_params(axis="x", pad=6)
