"""How far predictions lie from those of retrained models, as bars: one plot for each set of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.report.bars import Bar, draw_bars, interval
from gen_unlearn.report.numbers import format_floor
from gen_unlearn.report.plots import Plot
from gen_unlearn.report.states import States

SETS = {
    "forget": "Deleted images",
    "forget_class_test": "Held-out images of deleted classes",
    "retain": "Retained training images",
    "test": "Held-out images of retained classes",
    "held_out": "All held-out images",
}
"""Sets of images in the order in which they are shown -> heading; names of measures contain them."""

QUANTITY = "prediction_gap"

_POOLS = {
    "": "Beside oracles: retrained semi-parametric models",
    "_parametric": "Beside retrained models without exemplars",
}
"""What names of measures take on for the retrained models compared with -> heading."""


@dataclass(frozen=True)
class GapGroup:
    """The plots beside one kind of retrained models.

    Attributes:
        heading: which they are.
        plots: one for each set of images.
        has_floor: there are two retrained models or more, so that their own distance is known.
    """

    heading: str
    plots: tuple[Plot, ...]
    has_floor: bool


def gap_groups(scorecard: Scorecard, states: States) -> list[GapGroup]:
    """Draw PG_H of arXiv 2603.22870 before and after the deletion; nothing where no model was retrained."""
    measures = {measure.name: measure for measure in scorecard.measures if math.isfinite(measure.value)}
    groups = []
    for pool, heading in _POOLS.items():
        plots, floors = [], []
        for name, text in SETS.items():
            found = _by_state(measures, f"{QUANTITY}_{name}{pool}")
            if found:
                bars = [Bar(state, measure) for state, measure in found.items()]
                plots.append(Plot(text, draw_bars(bars, f"{QUANTITY}_{name}{pool}", states), _remark(found)))
                floors += [measure.floor for measure in found.values()]
        if plots:
            groups.append(GapGroup(heading, tuple(plots), all(floor is not None for floor in floors)))
    return groups


def _by_state(measures: Mapping[str, Measure], name: str) -> dict[str, Measure]:
    """Return the measures before and after, as far as there are."""
    names = {"before": f"{name}_before", "after": name}
    return {state: measures[full] for state, full in names.items() if full in measures}


def _remark(found: Mapping[str, Measure]) -> str:
    """Say where the model after the deletion lies, and whether the set can show anything."""
    after, before = found.get("after"), found.get("before")
    if after is None:
        return ""
    if after.floor is None:
        return "One retrained model gives no floor."
    floor = format_floor(after)
    if after.value > after.floor:
        low, _ = interval(after)
        reached = ", which lies inside its 95\u00a0% interval" if low <= after.floor else ""
        return f"After: above the floor of {floor}{reached}."
    text = f"After: indistinguishable from a retrained model, at or below the floor of {floor}."
    if before is not None and before.value <= after.floor:
        text += " So was it before: these images do not show what the deletion did."
    return text
