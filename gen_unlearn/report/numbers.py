"""Write measures for people: units, digits that the standard error supports, and groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.scorecard import Measure

GROUPS: dict[str, tuple[str, ...]] = {
    "Fréchet distances": ("fd_", "fid", "frechet"),
    "Other distances to real images": ("kd_", "precision_", "recall_", "density_", "coverage_"),
    "Retrain gap": ("retrain_gap", "fd_to_oracle", "kd_to_oracle"),
    "Accuracy": ("accuracy_",),
    "Distance of predictions to retrained models": ("prediction_gap_", "soft_gap_", "js_gap_"),
    "Forgotten classes": ("forgotten_", "unlearning_", "entropy_"),
    "Retained classes": ("retained_", "retain_"),
    "Membership": ("membership_",),
    "Copies of deleted images": ("nearest_", "copy", "copies", "share_nearest"),
    "Data copying": ("authenticity", "copying_", "mifid", "adapter_copying"),
    "Attacks on the adapters": (
        "key_source_",
        "reconstruction_",
        "adaptive_sequence",
        "bit_identical",
        "before_after_",
    ),
    "Cost": ("seconds_", "visits_", "sampling_", "cost_", "bytes_", "parameters", "memory"),
}
"""Group -> what the names of its measures begin with; the longest beginning decides."""

OTHER_GROUP = "Other measures"

SHARES = {
    *("rate", "accuracy", "share", "precision", "recall", "coverage", "tpr", "authenticity", "prediction"),
    "reconstruction",
}
"""A measure with one of these words in its name is a share, and is written in per cent."""


PLAIN = ("fd_", "kd_", "density_", "mifid_", "copying_z_")
"""Beginnings of measures without a unit, whatever the folder of images is called that ends their names."""


def grouped(measures: Iterable[Measure]) -> dict[str, list[Measure]]:
    """Sort measures into the groups of the page, keeping their order; empty groups are left out."""
    groups: dict[str, list[Measure]] = {name: [] for name in (*GROUPS, OTHER_GROUP)}
    for measure in measures:
        groups[group_of(measure.name)].append(measure)
    return {name: members for name, members in groups.items() if members}


def group_of(name: str) -> str:
    """Return the group of a measure by how its name begins."""
    fits = [
        (len(begin), group) for group, begins in GROUPS.items() for begin in begins if name.startswith(begin)
    ]
    return max(fits)[1] if fits else OTHER_GROUP


def is_share(name: str) -> bool:
    """Say whether a measure is a share, to be written in per cent."""
    return not name.startswith(PLAIN) and not SHARES.isdisjoint(name.split("_"))


def unit_of(name: str) -> str:
    """Return the unit that follows the number, with a no-break space before it, or nothing."""
    if is_share(name):
        return "\u00a0%"
    return "\u00a0s" if "seconds" in name.split("_") and not name.startswith(PLAIN) else ""


def format_value(measure: Measure) -> str:
    """Write a measure as ``12.8 ± 0.4`` or, if it is a share, ``97.1 ± 0.5 %``."""
    value, error = measure.value, measure.standard_error
    if error and math.isfinite(value) and math.isfinite(error):
        found = Estimate(value, error).scaled(factor_of(measure))
        rounding = found.standard_error < 1e-8  # Such as a set against itself.
        text = f"{found.value:.2g} ± {found.standard_error:.1g}" if rounding else str(found)
        number = text.replace(" ", "\u00a0")
    else:
        number = three_digits(value * factor_of(measure))
    return number + unit_of(measure.name)


def format_floor(measure: Measure) -> str:
    """Write the floor of a measure in its unit, or nothing where there is none."""
    if measure.floor is None:
        return ""
    return three_digits(measure.floor * factor_of(measure)) + unit_of(measure.name)


def format_details(measure: Measure) -> str:
    """Write the further numbers of a measure, shares in per cent, such as ``95 % interval 0.58 to 0.66``."""

    def write(name: str, value: float) -> str:
        if name == "indistinguishable":
            return "yes" if value else "no"
        if is_share(measure.name) and name != "p_value":
            return three_digits(100 * value) + unit_of(measure.name)
        return three_digits(value)

    numbers = {name: write(name, value) for name, value in measure.details.items()}
    texts = []
    if {"interval_low", "interval_high"} <= numbers.keys():
        low, high = numbers.pop("interval_low"), numbers.pop("interval_high")
        texts.append(f"95\u00a0% interval {low} to {high}")
    texts += [f"{name.replace('_', ' ')} {text}" for name, text in numbers.items()]
    joined = "; ".join(texts)
    return joined[:1].upper() + joined[1:]


def three_digits(value: float) -> str:
    """Write a number without a known error: three significant digits, large ones as whole numbers."""
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.3g}"


def factor_of(measure: Measure) -> float:
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
