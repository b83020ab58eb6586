"""Sums over a set of rows, and a digest that is one: additions and removals update them in any order."""

from __future__ import annotations

import hashlib
import math

import numpy as np

LANES = 1024
"""Lanes of 16 bits in the state, as in LtHash16."""

_BLOCK = 256


class SetDigest:
    """LtHash16: a homomorphic digest of a multiset of byte strings.

    Each string, with its length before it, is expanded by SHAKE128 to 1024 numbers of 16 bits; the state is
    their sum modulo 2**16, lane by lane (Bellare & Micciancio 1997; Lewi et al. 2019, "Securing Update
    Propagation with Homomorphic Hashing"). So the order of the strings does not matter, and removing what was
    added gives, bit for bit, the state without it. To find two multisets of one state is a short-integer
    problem on lattices; only 65,536 equal copies of a string, which sum to 0, are no secret: the number of
    strings is to be stated beside the digest.

    Removing a string that was never added is not noticed, as the state does not know its strings.
    """

    def __init__(self) -> None:
        self._lanes = np.zeros(LANES, dtype=np.uint16)

    @property
    def hexdigest(self) -> str:
        """SHA-256 of the state, 64 hexadecimal digits."""
        return hashlib.sha256(self._lanes.astype("<u2").tobytes()).hexdigest()

    def add_rows(self, rows: np.ndarray) -> None:
        """Add the byte strings of a uint8 array ``(n, width)``, one per row.

        Raises:
            ValueError: an array of another kind.
        """
        self._lanes += _sum_of_rows(rows)

    def remove_rows(self, rows: np.ndarray) -> None:
        """Remove byte strings that were added, given as `add_rows` takes them.

        Raises:
            ValueError: an array of another kind.
        """
        self._lanes -= _sum_of_rows(rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SetDigest) and np.array_equal(self._lanes, other._lanes)

    __hash__ = None  # type: ignore[assignment]


class ClassSums:
    """What a set of labelled integer vectors adds up to, and the digest of the set.

    Integers have no rounding: removing rows gives, bit for bit, the state of never having added them.

    Args:
        classes: number of classes.
        shape: shape of one vector.

    Attributes:
        counts: rows per class, int64 ``(classes,)``.
        sums: sums of the vectors per class, int64 ``(classes, *shape)``.
        rows: digest of the rows: id, then label and vector in little-endian order.
    """

    def __init__(self, classes: int, shape: tuple[int, ...]) -> None:
        self.counts = np.zeros(classes, dtype=np.int64)
        self.sums = np.zeros((classes, *shape), dtype=np.int64)
        self.rows = SetDigest()

    def add(self, codes: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> None:
        """Add rows: int16 vectors ``(n, *shape)``, int64 labels ``(n,)`` and uint8 ids ``(n, width)``."""
        self.rows.add_rows(_as_bytes(codes, labels, ids))
        classes, counts, sums = _per_class(codes, labels)
        self.counts[classes] += counts
        self.sums[classes] += sums

    def remove(self, codes: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> None:
        """Remove rows that were added, given as `add` takes them."""
        self.rows.remove_rows(_as_bytes(codes, labels, ids))
        classes, counts, sums = _per_class(codes, labels)
        self.counts[classes] -= counts
        self.sums[classes] -= sums


def _per_class(codes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the classes that occur, and their counts and sums of codes, all int64."""
    order = np.argsort(labels, kind="stable")
    classes, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    members = np.split(codes[order], first[1:])  # faster than reduceat, which casts in small pieces
    return classes, counts, np.stack([rows.sum(axis=0, dtype=np.int64) for rows in members])


def _as_bytes(codes: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    flat = codes.astype("<i2").reshape(len(codes), math.prod(codes.shape[1:]))
    parts = (ids, labels.astype("<i8")[:, None], flat)
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1)


def _sum_of_rows(rows: np.ndarray) -> np.ndarray:
    """Return the sum of the expanded rows, uint16 ``(LANES,)``, with 0.5 MB of them in memory at once."""
    if rows.dtype != np.uint8 or rows.ndim != 2:
        raise ValueError(
            f"expected rows as uint8 of shape (n, width), got {rows.dtype} of shape {rows.shape}; "
            f"view each record as bytes"
        )
    count, width = rows.shape
    prefix = np.frombuffer(width.to_bytes(8, "little"), dtype=np.uint8)
    length = len(prefix) + width
    total = np.zeros(LANES, dtype=np.uint16)
    for start in range(0, count, _BLOCK):
        block = rows[start : start + _BLOCK]
        prefixed = np.concatenate([np.broadcast_to(prefix, (len(block), len(prefix))), block], axis=1)
        text = memoryview(prefixed.tobytes())
        expanded = b"".join(
            [
                hashlib.shake_128(text[offset : offset + length]).digest(2 * LANES)
                for offset in range(0, len(text), length)
            ]
        )
        total += np.frombuffer(expanded, dtype="<u2").reshape(-1, LANES).sum(axis=0, dtype=np.uint16)
    return total
