"""The inverse of a damped empirical Fisher matrix times a vector, exactly, from per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Rows = Callable[[int, int], Tensor]
"""Returns the rows from the first number up to, not including, the second one of a matrix ``(n, d)``."""

_COLUMNS = 1 << 16


def woodbury_ihvp(
    gradients: Tensor | Rows,
    vector: Tensor,
    damping: float,
    *,
    count: int | None = None,
    held: int = 128,
) -> Tensor:
    """Return ``(G^T G / n + damping I)^-1 vector``.

    By the identity of Woodbury this is ``(v - G^T (damping n I + G G^T)^-1 G v) / damping``: it takes an
    ``(n, n)`` matrix instead of a ``(d, d)`` one. The rows of G are read in blocks of which two are in memory
    at a time, and read again where they do not all fit.

    Args:
        gradients: G ``(n, d)``, one gradient a row, or a function that returns some of its rows.
        vector: ``(d,)``.
        damping: above 0.
        count: number of rows n; needed if `gradients` is a function.
        held: rows of a block. With ``b = ceil(n / held)`` blocks, about ``n (b + 1) / 2 + n`` rows are read,
            and just n if b is 1.

    Returns:
        float64 ``(d,)``, on the device of the vector; products and the solution are taken in float64.

    Raises:
        ValueError: `damping` or `held` is out of range, `count` is missing, or shapes disagree.
    """
    read, number = _rows(gradients, count)
    if not damping > 0:
        raise ValueError(f"expected damping above 0, got {damping}; without it the matrix has no inverse")
    if held < 1 or number < 1:
        raise ValueError(f"expected held and count of at least 1, got {held} and {number}")
    vector = vector.double()
    gram = torch.zeros(number, number, dtype=torch.float64, device=vector.device)
    projected = torch.zeros(number, dtype=torch.float64, device=vector.device)
    starts, block = range(0, number, held), torch.empty(0)
    for start in starts:
        rows = slice(start, min(start + held, number))
        block = _checked(read(rows.start, rows.stop), rows, vector)
        gram[rows, rows] = _products(block, block)
        projected[rows] = _products(block, vector[None]).squeeze(1)
        for other in range(start + held, number, held):
            columns = slice(other, min(other + held, number))
            gram[rows, columns] = _products(block, read(columns.start, columns.stop))
            gram[columns, rows] = gram[rows, columns].T
    gram.diagonal().add_(damping * number)
    factors = torch.cholesky_solve(projected[:, None], torch.linalg.cholesky(gram)).squeeze(1)
    spanned = torch.zeros_like(vector)
    for start in starts:
        stop = min(start + held, number)
        _add_weighted_rows(spanned, factors[start:stop], block if len(starts) == 1 else read(start, stop))
    return (vector - spanned) / damping


def _rows(gradients: Tensor | Rows, count: int | None) -> tuple[Rows, int]:
    """Return a function that reads rows, and their number."""
    if not isinstance(gradients, Tensor):
        if count is None:
            raise ValueError("expected count, the number of rows that the function can read, got none")
        return gradients, count
    matrix = gradients
    if count not in (None, len(matrix)):
        raise ValueError(f"expected count to be the {len(matrix)} rows of the matrix, got {count}")
    return lambda start, stop: matrix[start:stop], len(matrix)


def _checked(block: Tensor, rows: slice, vector: Tensor) -> Tensor:
    """Return a block if it has the shape that the vector and the rows ask for."""
    expected = (rows.stop - rows.start, *vector.shape)
    if vector.ndim != 1 or block.shape != expected:
        raise ValueError(
            f"expected rows (n, d) and a vector (d,), got {tuple(block.shape)} for rows {rows.start} to "
            f"{rows.stop} and a vector of shape {tuple(vector.shape)}"
        )
    return block


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right.T`` in float64, a few columns at a time."""
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=left.device)
    for start in range(0, left.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        total += left[:, columns].double() @ right[:, columns].double().T
    return total


def _add_weighted_rows(total: Tensor, factors: Tensor, block: Tensor) -> None:
    """Add ``block.T @ factors`` to `total`, in place."""
    for start in range(0, len(total), _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        total[columns] += factors @ block[:, columns].double()
