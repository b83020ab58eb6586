"""Write measures for people: units, digits that the standard error supports, and groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.scorecard import Measure

GROUPS: dict[str, tuple[str, ...]] = {
    "Fréchet distances": ("fd_", "fid", "frechet"),
    "Forgotten classes": ("forgotten_",),
    "Retained classes": ("retained_", "retain_"),
    "Copies of deleted images": ("nearest_", "copy", "copies", "share_nearest"),
    "Cost": ("seconds_", "sampling_", "cost_", "bytes_", "parameters", "memory"),
}
"""Group -> what the names of its measures begin with."""

OTHER_GROUP = "Other measures"

SHARES = {"rate", "accuracy", "share"}
"""A measure with one of these words in its name is a share, and is written in per cent."""


def grouped(measures: Iterable[Measure]) -> dict[str, list[Measure]]:
    """Sort measures into the groups of the page, keeping their order; empty groups are left out."""
    groups: dict[str, list[Measure]] = {name: [] for name in (*GROUPS, OTHER_GROUP)}
    for measure in measures:
        groups[group_of(measure.name)].append(measure)
    return {name: members for name, members in groups.items() if members}


def group_of(name: str) -> str:
    """Return the group of a measure by how its name begins."""
    return next((group for group, begins in GROUPS.items() if name.startswith(begins)), OTHER_GROUP)


def is_share(name: str) -> bool:
    """Say whether a measure is a share, to be written in per cent."""
    return not SHARES.isdisjoint(name.split("_"))


def unit_of(name: str) -> str:
    """Return the unit that follows the number, with a no-break space before it, or nothing."""
    if is_share(name):
        return "\u00a0%"
    return "\u00a0s" if "seconds" in name.split("_") else ""


def format_value(measure: Measure) -> str:
    """Write a measure as ``12.8 ± 0.4`` or, if it is a share, ``97.1 ± 0.5 %``."""
    value, error = measure.value, measure.standard_error
    if error and math.isfinite(value) and math.isfinite(error):
        number = str(Estimate(value, error).scaled(_factor(measure))).replace(" ", "\u00a0")
    else:
        number = three_digits(value * _factor(measure))
    return number + unit_of(measure.name)


def format_floor(measure: Measure) -> str:
    """Write the floor of a measure in its unit, or nothing where there is none."""
    if measure.floor is None:
        return ""
    return three_digits(measure.floor * _factor(measure)) + unit_of(measure.name)


def three_digits(value: float) -> str:
    """Write a number without a known error: three significant digits, large ones as whole numbers."""
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.3g}"


def _factor(measure: Measure) -> float:
    """Return what a value of `measure` is multiplied with to be in its unit."""
    return 100.0 if is_share(measure.name) else 1.0


def flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested settings to pairs of a dotted name and a text."""
    pairs: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            pairs += flatten(item, f"{prefix}{key}.")
        elif isinstance(item, (list, tuple)):
            pairs.append((f"{prefix}{key}", ", ".join(str(entry) for entry in item)))
        else:
            pairs.append((f"{prefix}{key}", str(item)))
    return pairs
