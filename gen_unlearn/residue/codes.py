"""Recognise the keys that a classifier makes of deleted images, as codes or as numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gen_unlearn.residue.deleted import DeletedImages

STEPS = 3.0
"""Steps by which each component of a stored key may differ: other machines and batches round otherwise."""

HALF_PRECISION = 2.0**-8
"""The same, relative to the component, for keys stored in half precision: twice the error of bfloat16."""

_CLOSE = 0.25  # A match is closer than this part of how far the keys of different images lie apart.
_FEWEST_FOR_SPREAD = 4
_PROBES = 8
_ROWS_AT_ONCE = 256
_COMPARED_VALUES = 1 << 22


class CodeMatcher:
    """Find rows that are the key of a deleted image, each component within a few steps.

    A network may give all images nearly the same keys; then their distances set the limit, as for tokens.

    Args:
        codes: int16 ``(n, length)``.
        scale: steps per unit of the keys that the codes stand for.
        retained: codes of other images, int16 ``(m, length)``; a row that is as near to one is theirs.
    """

    def __init__(self, codes: np.ndarray, scale: int, retained: np.ndarray | None = None) -> None:
        self._retained = None if retained is None or not len(retained) else retained.astype(np.float64)
        codes = np.unique(codes, axis=0).astype(np.float64)
        self._scale = scale
        self._steps = min(STEPS, _CLOSE * _spread(codes))
        self._probes = np.argsort(-codes.std(axis=0), kind="stable")[:_PROBES]
        self._codes = codes[np.argsort(codes[:, self._probes[0]], kind="stable")]
        self._sorted = np.ascontiguousarray(self._codes[:, self._probes[0]])

    @classmethod
    def of(cls, deleted: DeletedImages) -> CodeMatcher:
        """Search for the keys of deleted images, some of which are known.

        Raises:
            ValueError: none is.
        """
        if deleted.codes is None or not len(deleted.codes):
            raise ValueError("expected the codes of deleted images, got none; there is nothing to search for")
        return cls(deleted.codes, deleted.code_scale, deleted.retained_codes)

    @property
    def values(self) -> int:
        """Number of values in a row."""
        return self._codes.shape[1]

    def find(self, rows: np.ndarray, half_precision: bool = False) -> list[int]:
        """Return which rows of an array ``(m, values)`` are keys of deleted images, ascending.

        Args:
            rows: codes as numbers of any type; floats also as the keys themselves.
            half_precision: the floats were stored with 16 bits, even if they have more now.
        """
        found: set[int] = set()
        scales = (1, self._scale) if rows.dtype.kind == "f" else (1,)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            block = rows[start : start + _ROWS_AT_ONCE].astype(np.float64)
            block = np.where(np.isfinite(block).all(axis=1, keepdims=True), block, 0.0)
            for scale in scales:
                steps = block * scale
                limits = self._steps + (HALF_PRECISION * np.abs(steps) if half_precision else 0 * steps)
                found.update(start + row for row in self._matching(steps, limits))
        return sorted(found)

    def _matching(self, rows: np.ndarray, limits: np.ndarray) -> Iterator[int]:
        """Yield the rows of a block, in steps, that lie within their limits of a key."""
        first = self._probes[0]
        low = np.searchsorted(self._sorted, rows[:, first] - limits[:, first])
        counts = np.searchsorted(self._sorted, rows[:, first] + limits[:, first], side="right") - low
        row = np.repeat(np.arange(len(rows)), counts)
        code = np.arange(len(row)) + np.repeat(low - np.cumsum(counts) + counts, counts)
        for probe in self._probes[1:]:
            near = np.abs(rows[row, probe] - self._codes[code, probe]) <= limits[row, probe]
            row, code = row[near], code[near]
        size = max(1, _COMPARED_VALUES // self.values)
        for part in (slice(start, start + size) for start in range(0, len(row), size)):
            apart = np.abs(rows[row[part]] - self._codes[code[part]])
            for place in np.flatnonzero((apart <= limits[row[part]]).all(axis=1)).tolist():
                if apart[place].max() < self._retained_distance(rows[row[part][place]]):
                    yield int(row[part][place])

    def _retained_distance(self, row: np.ndarray) -> float:
        """Return the largest difference of a row from the nearest key of a retained image."""
        if self._retained is None:
            return np.inf
        return float(np.abs(self._retained - row).max(axis=1).min())


def _spread(codes: np.ndarray) -> float:
    """Return the median of the largest differences of rows ``(n, length)`` from their mean; see `tokens`."""
    if len(codes) < _FEWEST_FOR_SPREAD:
        return np.inf
    distance = float(np.median(np.abs(codes - codes.mean(axis=0)).max(axis=1)))
    return distance if distance > 0 else np.inf
