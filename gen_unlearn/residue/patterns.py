"""Find any of many byte strings in long data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gen_unlearn.residue.windows import NARROW, WIDE, WindowIndex, telling_windows, windows_at_every_offset

_COMPARED_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class PatternGroup:
    """Byte strings of equal length, each with two windows that tell it from others.

    Attributes:
        rows: the strings, contiguous uint8 ``(n, length)``, all distinct.
        width: bytes per window.
        first: offset of the most telling window, int64 ``(n,)``.
        second: offset of another one, int64 ``(n,)``.
    """

    rows: np.ndarray
    width: int
    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, line: int | None = None) -> PatternGroup:
        """Choose windows for uint8 ``(n, length >= 4)``.

        Where a `line` of at least 4 bytes is given, no window crosses a multiple of it: each lies within one
        line of pixels, and is found in a wider picture too.
        """
        length = rows.shape[1]
        distinct = dict.fromkeys(row.tobytes() for row in rows)
        rows = np.frombuffer(b"".join(distinct), dtype=np.uint8).reshape(-1, length)
        line = length if line is None or line < NARROW else line
        width = WIDE if line >= WIDE else NARROW
        allowed = np.arange(length - width + 1) % line <= line - width
        return cls(rows, width, *telling_windows(rows, width, allowed))

    @property
    def first_words(self) -> np.ndarray:
        """The most telling window of each string, as words ``(n,)``."""
        return self._words(self.first)

    @property
    def second_words(self) -> np.ndarray:
        """The other window of each string, as words ``(n,)``."""
        return self._words(self.second)

    def _words(self, offsets: np.ndarray) -> np.ndarray:
        length = self.rows.shape[1]
        return windows_at_every_offset(self.rows.reshape(-1), self.width)[
            np.arange(len(self.rows)) * length + offsets
        ]

    def confirm(self, data: np.ndarray, rows: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, ...]:
        """Keep of the guesses "row `rows[i]` stands at `starts[i]`" those that hold for every byte."""
        length = self.rows.shape[1]
        inside = (starts >= 0) & (starts + length <= len(data))
        rows, starts = rows[inside], starts[inside]
        seen = windows_at_every_offset(data, self.width)[starts + self.second[rows]]
        likely = seen == self.second_words[rows]
        rows, starts = rows[likely], starts[likely]
        equal = np.zeros(len(rows), dtype=bool)
        size = max(1, _COMPARED_BYTES // length)
        for chunk in (slice(first, first + size) for first in range(0, len(rows), size)):
            spans = np.lib.stride_tricks.sliding_window_view(data, length)[starts[chunk]]
            equal[chunk] = (spans == self.rows[rows[chunk]]).all(axis=1)
        return rows[equal], starts[equal]


class PatternSet:
    """Groups of byte strings that are searched for together, in one pass for each width of window."""

    def __init__(self, groups: Sequence[PatternGroup]) -> None:
        self._groups = groups
        self._passes = [_Pass(groups, width) for width in (WIDE, NARROW)]

    def find(self, data: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield every occurrence in contiguous uint8 ``(n,)``.

        Yields:
            The number of a group; which of its rows were found, and where they start, both int64 ``(m,)``.
        """
        for one_pass in self._passes:
            for number, rows, starts in one_pass.guesses(data):
                rows, starts = self._groups[number].confirm(data, rows, starts)
                if len(rows):
                    yield number, rows, starts


class _Pass:
    """The groups with windows of one width."""

    def __init__(self, groups: Sequence[PatternGroup], width: int) -> None:
        taken = [(number, group) for number, group in enumerate(groups) if group.width == width]
        empty = np.empty(0, dtype=np.int64)
        self._index = WindowIndex(
            np.concatenate([group.first_words for _, group in taken]) if taken else empty.astype(f"u{width}")
        )
        self._group = np.concatenate([empty, *(np.full(len(group.rows), number) for number, group in taken)])
        self._row = np.concatenate([empty, *(np.arange(len(group.rows)) for _, group in taken)])
        self._offset = np.concatenate([empty, *(group.first for _, group in taken)])

    def guesses(self, data: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield group, rows and starts of the strings whose most telling window was found."""
        for positions, words in self._index.find(data):
            for number in np.unique(self._group[words]).tolist():
                own = self._group[words] == number
                yield number, self._row[words[own]], positions[own] - self._offset[words[own]]
