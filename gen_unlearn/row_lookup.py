"""Find rows by sample id, in a table from which rows are deleted."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from gen_unlearn.repro import id_keys

_Rows = TypeVar("_Rows", np.ndarray, Tensor)


class RowLookup:
    """Rows by id: a hash table of row numbers, with -1 for deleted rows, that holds no id itself."""

    def __init__(self, ids: np.ndarray) -> None:
        self.bits = max(1, (len(ids) - 1).bit_length())
        buckets = self._buckets(ids)
        self.rows = np.argsort(buckets, kind="stable")
        self.slots = np.empty_like(self.rows)
        self.slots[self.rows] = np.arange(len(ids))
        self.starts = np.append(0, np.cumsum(np.bincount(buckets, minlength=1 << self.bits)))

    def _buckets(self, ids: np.ndarray) -> np.ndarray:
        first, second = id_keys(ids).view("<u8").reshape(-1, 2).T
        mixed = (first ^ (second * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xBF58476D1CE4E5B9)
        return (mixed >> np.uint64(64 - self.bits)).astype(np.int64)

    def find(self, wanted: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of `ids` that hold a wanted id, and the index of that in `wanted`; both int64."""
        buckets = self._buckets(wanted)
        starts, sizes = self.starts[buckets], self.starts[buckets + 1] - self.starts[buckets]
        index = np.repeat(np.arange(len(wanted)), sizes)
        rows = self.rows[np.arange(len(index)) + np.repeat(starts - np.cumsum(sizes) + sizes, sizes)]
        rows, index = rows[rows >= 0], index[rows >= 0]
        same = (ids[rows] == wanted[index]).all(axis=1)
        return rows[same], index[same]

    def drop(self, removed: np.ndarray) -> None:
        """Forget removed rows; the others stay where they are."""
        self.rows[self.slots[removed]] = -1

    def move(self, removed: np.ndarray, moving: np.ndarray, holes: np.ndarray) -> None:
        """Forget the removed rows, and take down that the moving ones are now in the holes."""
        self.drop(removed)
        self.rows[self.slots[moving]] = holes
        self.slots = swapped(self.slots, moving, holes, len(self.slots) - len(removed))


def swapped(rows: _Rows, moving: np.ndarray, holes: np.ndarray, after: int) -> _Rows:
    """Move rows into the holes, zero all but the first `after` places, and return a view of these."""
    memory: Any = rows.numpy() if isinstance(rows, Tensor) and rows.is_cpu else rows  # waits for no threads
    memory[holes] = memory[moving]
    memory[after:] = 0
    return rows[:after]
