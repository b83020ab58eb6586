"""What attacks found, in words."""

from __future__ import annotations

import pytest

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.report.attacks import AttackRow, attack_rows


def measure(name: str, value: float, floor: float, **details: float) -> Measure:
    return Measure(name, value, "A definition.", 0.01, floor, "a floor", details)


def row(found: Measure) -> AttackRow:
    (only,) = attack_rows(Scorecard((found,), {}))
    return only


@pytest.mark.parametrize(
    ("found", "alarming", "reading"),
    [
        (measure("key_source_auc", 0.51, 0.5, interval_low=0.49), False, "Not told from guessing."),
        (measure("key_source_auc", 0.99, 0.5, interval_low=0.98), True, "nearer to training images"),
        (measure("reconstruction_single", 0.08, 0.05, p_value=0.3), False, "Not told from guessing."),
        (measure("reconstruction_single", 1.0, 0.05, p_value=0.0), True, "after a single deletion"),
        (measure("reconstruction_batched", 0.2, 0.05, p_value=0.0), True, "does not hide it wholly"),
        (measure("reconstruction_batched_kept", 0.05, 0.05, p_value=1.0), False, "not meant to hide it"),
        (measure("bit_identical", 20, 20, images_deleted=400), False, "as if they had never been there"),
        (measure("adaptive_sequence", 19, 20, images_deleted=200), True, "keep something of them"),
    ],
)
def test_says_what_was_found(found: Measure, alarming: bool, reading: str) -> None:
    shown = row(found)
    assert shown.alarming is alarming
    assert reading in shown.reading
    assert shown.measure == found


def test_counts_name_the_whole() -> None:
    shown = row(measure("bit_identical", 20, 20, images_deleted=400))
    assert (shown.of_all, shown.best) == (" of 20", "all of them")
    assert row(measure("key_source_auc", 0.5, 0.5, interval_low=0.4)).best == "0.5, guessing"


def test_says_what_was_not_measured() -> None:
    notes = ("Another note.", "reconstruction_batched: not measured. Adapters are small.")
    (only,) = attack_rows(Scorecard((), {}, notes=notes))
    assert only.measure is None
    assert only.reading == "Not measured. Adapters are small."
    assert attack_rows(Scorecard((), {}, notes=notes[:1])) == []
