"""What a search yields: hits, and places that could not be searched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

Kind = Literal["id", "file name", "pixels", "picture", "encoded tokens"]

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Something to report about places within one file.

    Attributes:
        place: where, within the file: ``tensor 'pixels'``, or nothing for the file itself.
        unit: what positions count: ``row``, ``byte``, ``tile``.
        positions: one for each occurrence.
    """

    place: str = ""
    unit: str = ""
    positions: tuple[int | str, ...] = ()

    @property
    def where(self) -> str:
        """Place and positions, for people."""
        shown = ", ".join(str(position) for position in self.positions[:_SHOWN])
        rest = len(self.positions) - _SHOWN
        counted = f"{self.unit} {shown}".strip() + (f" and {rest} more" if rest > 0 else "")
        return ", ".join(filter(None, [self.place, counted]))


@dataclass(frozen=True, kw_only=True)
class Hit(Trace):
    """Residue of one kind. It never repeats what was found: reports are kept.

    Attributes:
        kind: what was found.
        remark: what a reader has to know to judge it.
    """

    kind: Kind
    remark: str = ""

    @property
    def detail(self) -> str:
        """Everything but the kind, for people."""
        return self.where + (f" ({self.remark})" if self.remark else "")


@dataclass(frozen=True, kw_only=True)
class Unsearched(Trace):
    """What could not be searched, and why."""

    reason: str


AnyTrace = TypeVar("AnyTrace", bound=Trace)


def inside(outer: str, traces: Iterable[Trace]) -> Iterator[Trace]:
    """Say of traces that their places lie within another one."""
    for trace in traces:
        yield replace(trace, place=", ".join(filter(None, [outer, trace.place])))


def counted_at(unit: str, position: int, traces: Iterable[Trace]) -> Iterator[Trace]:
    """Replace what traces say about places within one position, such as a row, by the position."""
    for trace in traces:
        yield replace(trace, place="", unit=unit, positions=(position,))


def renumbered(traces: Iterable[Trace], row: Callable[[int], int]) -> Iterator[Trace]:
    """Map the rows that traces name to other rows."""
    for trace in traces:
        if trace.unit == "row":
            rows = tuple(row(position) for position in trace.positions if isinstance(position, int))
            trace = replace(trace, positions=rows)
        yield trace


def merged(traces: Iterable[AnyTrace]) -> list[AnyTrace]:
    """Join traces that differ in nothing but positions, in the order of the first of each."""
    positions: dict[AnyTrace, dict[int | str, None]] = {}
    for trace in traces:
        positions.setdefault(replace(trace, positions=()), {}).update(dict.fromkeys(trace.positions))
    return [replace(trace, positions=tuple(places)) for trace, places in positions.items()]
