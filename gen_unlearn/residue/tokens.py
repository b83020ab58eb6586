"""Recognise what the model's encoder makes of deleted images among the rows of stored arrays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gen_unlearn.repro import numpy_generator

TOLERANCE = 1e-4
"""Relative distance of two encodings of an image in float32: other batches round otherwise."""

HALF_TOLERANCE = 1e-2
"""The same for arrays stored in half precision."""

FEWEST_VALUES = 16
"""Tokens of fewer values say too little to be searched for."""

_CLOSE = 0.25  # A match is closer than this part of how far the tokens of different images lie apart.
_FEWEST_FOR_SPREAD = 4
_DIRECTIONS = 32
_SLACK = 4.0  # A distance grows by more in 32 random directions, scaled, with a chance below 1e-30.
_ROWS_AT_ONCE = 256


class TokenMatcher:
    """Find rows that lie within a relative Euclidean distance of the tokens of a deleted image.

    Rows are compared in a few random directions first, which rules out nearly all of them. An encoder may
    give all images nearly the same tokens; then the distances between them, not their size, set the limit.

    Args:
        tokens: float32 ``(n, ...)``.
    """

    def __init__(self, tokens: np.ndarray) -> None:
        rows = tokens.reshape(len(tokens), -1)
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        usable = np.isfinite(norms) & (norms > 0)
        self._rows, self._norms = rows[usable], norms[usable]
        generator = numpy_generator("directions of the residue search")
        self._directions = generator.standard_normal((self.values, _DIRECTIONS)) / np.sqrt(_DIRECTIONS)
        self._projected = self._rows.astype(np.float64) @ self._directions
        self._limit = _CLOSE * _spread(self._rows)

    @property
    def values(self) -> int:
        """Number of values in a row."""
        return self._rows.shape[1]

    def find(self, rows: np.ndarray, tolerance: float) -> Iterator[int]:
        """Yield which rows of a float array ``(m, values)`` are tokens of a deleted image."""
        limits = np.minimum(tolerance * self._norms, self._limit)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            block = rows[start : start + _ROWS_AT_ONCE].astype(np.float64)
            block = np.where(np.isfinite(block).all(axis=1, keepdims=True), block, 0.0)
            matches = {
                start + row
                for row, tokens in self._near(block, _SLACK * limits)
                if (np.linalg.norm(block[row] - self._rows[tokens], axis=1) <= limits[tokens]).any()
            }
            yield from sorted(matches)

    def _near(self, block: np.ndarray, limits: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield rows of a block with the tokens that are close to them in the random directions."""
        projected = block @ self._directions
        squared = (projected**2).sum(axis=1)[:, None] + (self._projected**2).sum(axis=1)
        squared -= 2 * projected @ self._projected.T
        close = squared <= limits**2
        return ((row, np.flatnonzero(close[row])) for row in np.flatnonzero(close.any(axis=1)).tolist())


def _spread(rows: np.ndarray) -> float:
    """Return the median distance of rows ``(n, values)`` from their mean; infinite for few or equal rows."""
    if len(rows) < _FEWEST_FOR_SPREAD:
        return np.inf
    distance = float(np.median(np.linalg.norm(rows - rows.mean(axis=0, dtype=np.float64), axis=1)))
    return distance if distance > 0 else np.inf
