"""The scorecard as text for a terminal."""

from __future__ import annotations

from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.report import numbers


def text_table(card: Scorecard) -> str:
    """Return one line for each measure: name, value with its standard error, floor in brackets."""
    rows = [
        (measure.name, numbers.format_value(measure), numbers.format_floor(measure))
        for measures in numbers.grouped(card.measures).values()
        for measure in measures
    ]
    name_width = max((len(name) for name, _, _ in rows), default=0)
    value_width = max((len(value) for _, value, _ in rows), default=0)
    lines = [
        f"{name:<{name_width}}  {value:>{value_width}}" + (f"  (floor {floor})" if floor else "")
        for name, value, floor in rows
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in card.notes)])
