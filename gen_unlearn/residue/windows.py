"""Short windows of bytes: choosing the telling ones, and finding any of many of them in long data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

WIDE, NARROW = 8, 4
"""Bytes in a window, of patterns that are long enough for the wide one and of those that are not."""

_TYPES: dict[int, np.dtype] = {WIDE: np.dtype(np.uint64), NARROW: np.dtype(np.uint32)}
_MULTIPLIER = 0x9E3779B97F4A7C15
_BLOCK = 1 << 17
_CHUNK_BYTES = 1 << 20
_LARGEST_BITS = 22
_FEWEST_BITS = 12
_COUNTED_BITS = 20
_ROWS_COUNTED = 256


def windows_at_every_offset(data: np.ndarray, width: int) -> np.ndarray:
    """View contiguous uint8 ``(n,)`` as ``(n - width + 1,)`` words of `width` bytes that overlap; no copy."""
    count = max(0, len(data) - width + 1)
    return np.ndarray((count,), _TYPES[width], buffer=data, strides=(1,))


def telling_windows(rows: np.ndarray, width: int, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose in each row two windows that do not overlap, the most telling first.

    A window tells much if it holds many distinct values and is rare; of many rows, a part shows what is rare.

    Args:
        rows: uint8 ``(n, length)``, with ``length >= width``.
        width: bytes per window.
        allowed: bool ``(length - width + 1,)``, the offsets to choose from.

    Returns:
        Two arrays of offsets, int64 ``(n,)``. They are equal where two windows do not fit.
    """
    places = rows.shape[1] - width + 1
    some = rows[:: max(1, len(rows) // _ROWS_COUNTED)]
    bits = min(_COUNTED_BITS, _table_bits(len(some) * places))
    rarity = _rarity(some, width, bits)
    first, second = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.int64)
    for chunk in _chunks(rows):
        score = _distinct_values(rows[chunk], width) + rarity[_hash(_row_windows(rows[chunk], width), bits)]
        score[:, ~allowed] = -np.inf
        first[chunk] = score.argmax(axis=1)
        near = np.abs(np.arange(places) - first[chunk][:, None]) < width
        score[near] = -np.inf
        second[chunk] = np.where(np.isneginf(score).all(axis=1), first[chunk], score.argmax(axis=1))
    return first, second


def _chunks(rows: np.ndarray) -> Iterator[slice]:
    size = max(1, _CHUNK_BYTES // rows.shape[1])
    return (slice(start, start + size) for start in range(0, len(rows), size))


def _row_windows(rows: np.ndarray, width: int) -> np.ndarray:
    """Return the windows of contiguous uint8 ``(n, length)`` as words ``(n, length - width + 1)``."""
    shape = len(rows), rows.shape[1] - width + 1
    return np.ndarray(shape, _TYPES[width], buffer=rows, strides=(rows.shape[1], 1))


def _hash(words: np.ndarray, bits: int) -> np.ndarray:
    """Hash words to int64 numbers below ``2 ** bits``."""
    size = 8 * words.dtype.itemsize
    hashed = words * words.dtype.type(_MULTIPLIER >> (64 - size) | 1)
    hashed >>= words.dtype.type(size - bits)
    return hashed.view(np.int64) if size == 64 else hashed.astype(np.int64)


def _table_bits(entries: int) -> int:
    """Return the size of a table of hashes that few of so many entries share, or the largest, in bits."""
    return min(_LARGEST_BITS, max(_FEWEST_BITS, entries.bit_length() + 6))


def _rarity(rows: np.ndarray, width: int, bits: int) -> np.ndarray:
    """Return minus the binary logarithm of how often windows of each hash occur, float32."""
    counts = np.zeros(1 << bits, dtype=np.int64)
    for chunk in _chunks(rows):
        windows = _row_windows(np.ascontiguousarray(rows[chunk]), width)
        np.add.at(counts, _hash(windows, bits).reshape(-1), 1)
    return -np.log2(np.maximum(counts, 1)).astype(np.float32)


def _distinct_values(rows: np.ndarray, width: int) -> np.ndarray:
    """Count the distinct bytes in every window of every row, uint8 ``(n, length - width + 1)``."""
    places = rows.shape[1] - width + 1
    equal = {gap: rows[:, :-gap] == rows[:, gap:] for gap in range(1, width)}
    distinct = np.ones((len(rows), places), dtype=np.uint8)
    for last in range(1, width):
        repeated = np.zeros((len(rows), places), dtype=bool)
        for gap in range(1, last + 1):
            repeated |= equal[gap][:, last - gap : last - gap + places]
        distinct += ~repeated
    return distinct


class WindowIndex:
    """Windows to look for, behind a filter that lets few other windows through.

    Args:
        words: the windows, uint64 or uint32 ``(n,)``; equal ones may occur.
    """

    def __init__(self, words: np.ndarray) -> None:
        self._order = np.argsort(words, kind="stable")
        self._sorted = words[self._order]
        self._bits = _table_bits(len(words))
        self._filter = np.zeros(1 << self._bits, dtype=bool)
        self._filter[_hash(words, self._bits)] = True

    def find(self, data: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield every occurrence in contiguous uint8 ``(n,)``, at any offset, some at a time.

        Yields:
            Offsets in the data, and which word is there, both int64 ``(m,)``.
        """
        windows = windows_at_every_offset(data, self._sorted.dtype.itemsize)
        for start in range(0, len(windows) if len(self._sorted) else 0, _BLOCK):
            block = windows[start : start + _BLOCK]
            passed = np.flatnonzero(self._filter[_hash(block, self._bits)])
            words = block[passed]
            low = np.searchsorted(self._sorted, words)
            counts = np.searchsorted(self._sorted, words, side="right") - low
            if counts.any():
                rank = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                yield np.repeat(start + passed, counts), self._order[np.repeat(low, counts) + rank]
