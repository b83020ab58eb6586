"""The scorecard as text for a terminal: a line for each quantity, a column for each state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.report import numbers

_STATES = ("before", "after", "oracle", "parametric", "random")


def text_table(card: Scorecard) -> str:
    """Return the measures by group: quantity, ``value ± standard error`` in each state, and the floor.

    Floors that differ from state to state stand on a line of their own. Measures that are not of a state
    stand in the column of the state after the deletion, or in the first.
    """
    states = dict.fromkeys([*_STATES, *card.protocol.get("generated", {})])
    present = [state for state in states if any(m.name.endswith(f"_{state}") for m in card.measures)]
    columns = present or [""]
    rows: list[list[str]] = [["", *columns, "floor"]]
    for group, measures in numbers.grouped(card.measures).items():
        rows += [[], [group]]
        for quantity, by_state in _by_quantity(measures, present).items():
            rows += _rows(quantity, by_state, columns)
    return "\n".join([*_aligned(rows), *(f"note: {note}" for note in card.notes)])


def _by_quantity(measures: Sequence[Measure], states: Sequence[str]) -> dict[str, dict[str, Measure]]:
    """Sort measures by quantity and state.

    A name without a state belongs to the state after the deletion if there is one, and to none otherwise.
    """
    split = {measure.name: _split(measure.name, states) for measure in measures}
    table: dict[str, dict[str, Measure]] = {}
    for measure in measures:
        quantity, state = split[measure.name]
        table.setdefault(quantity, {})[state or ("after" if "after" in states else "")] = measure
    return table


def _split(name: str, states: Iterable[str]) -> tuple[str, str]:
    """Split the name of a measure into quantity and state, the longest that fits, or an empty one.

    A distance to a state, such as ``fd_to_oracle`` or ``js_gap_test_parametric``, is not of that state.
    """
    distances = tuple(f"_to_{state}" for state in states)
    distances += ("_parametric",) if "_gap_" in name else ()
    fits = [state for state in states if name.endswith(f"_{state}") and not name.endswith(distances)]
    state = max(fits, key=len, default="")
    return (name.removesuffix(f"_{state}"), state) if state else (name, "")


def _rows(quantity: str, by_state: dict[str, Measure], columns: Sequence[str]) -> list[list[str]]:
    """Return the line of a quantity, and a second one with its floors if they are not the same everywhere."""
    floors = {state: numbers.format_floor(measure) for state, measure in by_state.items()}
    values = {state: numbers.format_value(measure) for state, measure in by_state.items()}
    if "" in values:
        floors[columns[0]], values[columns[0]] = floors.pop(""), values.pop("")
    line = [f"  {quantity}", *(values.get(column, "") for column in columns)]
    if len(set(floors.values())) == 1:
        return [[*line, next(iter(floors.values()))]]
    return [[*line, "below"], ["    floor", *(floors.get(column, "") for column in columns), ""]]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad the cells of each column: names to the left, numbers to the right."""
    full = [row for row in rows if len(row) > 1]
    widths = [max(len(row[column]) for row in full) for column in range(len(full[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
