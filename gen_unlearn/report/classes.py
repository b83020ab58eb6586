"""Heat maps of what is recognised in the images asked for under each class, one for each state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.report.states import States

NULL_TOKEN = "null token"
"""The request that names no class."""

MANY_CLASSES = 40
"""With more classes than this, only so many are shown: those deleted, and those recognised worst."""

OTHERS = "all others"

_FEW_CLASSES = 12


@dataclass(frozen=True)
class Cell:
    """How many of a row's images were recognised as one class.

    Attributes:
        recognised: the class, or `OTHERS`.
        count: images recognised as it.
        share: ``count`` of all images of the row.
        tint: per cent of colour, growing with the square root of the share so that rare mistakes show.
        kind: ``hit`` if it is the class asked for, ``miss`` if not, ``any`` if none was asked for.
    """

    recognised: str
    count: int
    share: float
    tint: float
    kind: Literal["hit", "miss", "any"]


@dataclass(frozen=True)
class MapRow:
    """The images asked for under one class; without cells the state refuses the class."""

    requested: str
    total: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class StateMap:
    """The heat map of one state."""

    state: str
    rows: tuple[MapRow, ...]


@dataclass(frozen=True)
class ClassMaps:
    """The heat maps of all states, with the same rows and columns.

    Attributes:
        maps: one for each state.
        columns: classes recognised; the last is `OTHERS` if not all classes are shown.
        deleted: classes that were deleted.
        classes: how many classes there are.
        shown: how many of them are shown.
    """

    maps: tuple[StateMap, ...]
    columns: tuple[str, ...]
    deleted: frozenset[str]
    classes: int
    shown: int

    @property
    def few(self) -> bool:
        """Say whether there are so few classes that the shares fit into the cells."""
        return self.classes <= _FEW_CLASSES

    @property
    def long_names(self) -> bool:
        """Say whether names are too long to stand side by side above the columns."""
        return any(len(name) > 2 for name in self.columns)


def class_maps(scorecard: Scorecard, states: States) -> ClassMaps | None:
    """Lay out the confusion tables of a scorecard, `None` if it has none.

    Above `MANY_CLASSES` classes the deleted ones are kept first, then those with the smallest share
    recognised as asked for after the deletion (before it, if that is all there is).
    """
    tables = {state: scorecard.confusion[state] for state in states.names if scorecard.confusion.get(state)}
    if not tables:
        return None
    classes = _class_names(tables)
    deleted = frozenset(str(name) for name in scorecard.protocol.get("forgotten_classes", ()))
    judged = tables.get("after") or next(iter(tables.values()))
    shown = _worst(classes, judged, deleted)
    columns = shown if len(shown) == len(classes) else [*shown, OTHERS]
    asked = [name for name in [*shown, NULL_TOKEN] if any(name in table for table in tables.values())]
    maps = tuple(
        StateMap(state, tuple(_row(name, table.get(name, {}), columns) for name in asked))
        for state, table in tables.items()
    )
    return ClassMaps(maps, tuple(columns), deleted, len(classes), len(shown))


def _class_names(tables: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[str]:
    """Return all classes, those recognised first since these tables are in the order of the labels."""
    names: dict[str, None] = {}
    for table in tables.values():
        for recognised in table.values():
            names.update(dict.fromkeys(recognised))
    for table in tables.values():
        names.update(dict.fromkeys(table))
    names.pop(NULL_TOKEN, None)
    return list(names)


def _worst(
    classes: Sequence[str], table: Mapping[str, Mapping[str, int]], deleted: frozenset[str]
) -> list[str]:
    """Choose at most `MANY_CLASSES` classes, and leave them in their order."""

    def quality(name: str) -> float:
        counts = table.get(name, {})
        return counts.get(name, 0) / (sum(counts.values()) or 1)

    ranked = sorted(classes, key=lambda name: (name not in deleted, quality(name)))
    kept = set(ranked[:MANY_CLASSES])
    return [name for name in classes if name in kept]


def _row(requested: str, counts: Mapping[str, int], columns: Sequence[str]) -> MapRow:
    """Turn the counts of one request into cells; images of classes without a column go to `OTHERS`."""
    total = sum(counts.values())
    if not total:
        return MapRow(requested, 0, ())
    shown = {name: counts.get(name, 0) for name in columns}
    if OTHERS in shown:
        shown[OTHERS] = total - sum(count for name, count in shown.items() if name != OTHERS)
    cells = tuple(
        Cell(name, count, count / total, 90 * math.sqrt(count / total), _kind(requested, name))
        for name, count in shown.items()
    )
    return MapRow(requested, total, cells)


def _kind(requested: str, recognised: str) -> Literal["hit", "miss", "any"]:
    if requested == NULL_TOKEN:
        return "any"
    return "hit" if requested == recognised else "miss"
