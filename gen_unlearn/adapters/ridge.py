"""Ridge heads: linear least squares from sums of integers, from which a record is subtracted without a trace.

With the codes `q` of a record, ``u = [q; 256]`` and its class as a one-hot `y`, the sums are ``Σ u uᵀ`` and
``Σ u yᵀ``. Integers add up to the same in every order, so what is left after a subtraction is what a fresh
sum of the other records gives. The weights are a pinned function of the sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np

from gen_unlearn.adapters.family import WEIGHTS, AdapterState, FitJob, HeadShape
from gen_unlearn.adapters.one_thread import one_thread
from gen_unlearn.adapters.records import STEPS, Records

Solver = Literal["lapack", "portable"]

_LEAST_PENALTY = 1e-6
"""With less, the sums of usual features are not positive in float64: rounding is as large as the penalty."""

_BLOCK = 8192
"""Records that are added up at once in float64: exact, as sums of up to 2**23 products of codes are."""


@dataclass(frozen=True)
class RidgeHeads:
    """Linear heads by ridge regression on one-hot classes.

    Attributes:
        penalty: added to the diagonal of the features' sums of squares, at least 1e-6: on the constant too,
            and the same for every number of members.
        solver: ``"lapack"``, the Cholesky solver of LAPACK on one thread, is fast; its last bits differ
            between builds and kinds of processor. ``"portable"`` computes element by element, with the same
            bits everywhere, some ten times slower.

    Raises:
        ValueError: a penalty that is too small or not a number, or another solver.
    """

    penalty: float = 100.0
    solver: Solver = "lapack"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.penalty) and self.penalty >= _LEAST_PENALTY):
            raise ValueError(
                f"expected penalty of at least {_LEAST_PENALTY}, got {self.penalty}; 100 is a good start"
            )
        if self.solver not in get_args(Solver):
            raise ValueError(f"expected solver {' or '.join(get_args(Solver))}, got {self.solver!r}")

    def fit(self, jobs: Sequence[FitJob], shape: HeadShape, seed: int) -> list[AdapterState]:  # noqa: ARG002
        """Fit adapters, each on its members alone; nothing is random here."""
        return [self.complete(_sums(job.members, shape)) for job in jobs]

    def update(
        self, state: AdapterState | None, change: Records, sign: int, shape: HeadShape
    ) -> AdapterState:
        """Return the sums with records added (`sign` 1) or subtracted (-1), without weights.

        `None` is an adapter without members. The state that is given is left as it is.

        Args:
            state: ``gram``, the lower triangle of ``Σ u uᵀ`` by rows, int64; ``cross``, ``Σ u yᵀ``, int64
                ``(features + 1, classes)``.
            change: the records.
            sign: 1 or -1.
            shape: sizes of the adapter.
        """
        sums = _sums(change, shape)
        if sign < 0:
            sums = {name: -array for name, array in sums.items()}
        return sums if state is None else {name: state[name] + array for name, array in sums.items()}

    def complete(self, state: AdapterState) -> AdapterState:
        """Return the sums with the weights that follow from them, float64 ``(features + 1, classes)``.

        Raises:
            ValueError: the penalty is too small for sums of such features.
        """
        cross = state["cross"]
        matrix = np.zeros((len(cross), len(cross)))
        matrix[_lower_triangle(len(cross))] = state["gram"] / STEPS**2
        np.fill_diagonal(matrix, matrix.diagonal() + self.penalty)
        solve = _solve_by_lapack if self.solver == "lapack" else _solve_by_elements
        try:
            weights = solve(matrix, cross / STEPS)
        except np.linalg.LinAlgError as error:
            raise ValueError(
                f"expected sums that are positive in float64 with the penalty, got others with penalty "
                f"{self.penalty}; raise it, 100 is a good start"
            ) from error
        return {"gram": state["gram"], "cross": cross, WEIGHTS: weights}

    def scores(self, state: AdapterState, codes: np.ndarray) -> np.ndarray:
        """Map codes, int16 ``(n, features)``, to scores of the classes, float64 ``(n, classes)``."""
        weights = state[WEIGHTS]
        return np.asarray(codes / STEPS @ weights[:-1] + weights[-1])

    def visits(self, members: int) -> int:
        """Return how often records are read to fit an adapter of so many members: once each."""
        return members


def _sums(records: Records, shape: HeadShape) -> dict[str, np.ndarray]:
    """Return the sums over records as they are kept in a state."""
    size = shape.features + 1
    gram = np.zeros((size, size), dtype=np.int64)
    cross = np.zeros((size, shape.classes), dtype=np.int64)
    for start in range(0, len(records), _BLOCK):
        block = records.select(slice(start, start + _BLOCK))
        extended = np.full((len(block), size), float(STEPS))
        extended[:, :-1] = block.codes
        gram += (extended.T @ extended).astype(np.int64)
        cross += (extended.T @ np.eye(shape.classes)[block.labels]).astype(np.int64)
    return {"gram": gram[_lower_triangle(size)], "cross": cross}


@cache
def _lower_triangle(size: int) -> np.ndarray:
    """Return which entries of a square matrix are on or below the diagonal, bool."""
    return np.tri(size, dtype=bool)


def _solve_by_lapack(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve for the right-hand sides; reads the lower triangle of the positive matrix, and overwrites it.

    Raises:
        numpy.linalg.LinAlgError: the matrix is not positive in float64.
    """
    from scipy.linalg import cho_factor, cho_solve

    with one_thread():
        factor = cho_factor(matrix.T, overwrite_a=True, check_finite=False)  # In LAPACK's order of entries.
        solution = cho_solve(factor, right, check_finite=False)
    return np.ascontiguousarray(solution)


def _solve_by_elements(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve like `_solve_by_lapack`, by products, differences, quotients and roots of single numbers.

    Raises:
        numpy.linalg.LinAlgError: the matrix is not positive in float64.
    """
    factor, solution, size = matrix.copy(), right.copy(), len(matrix)
    for step in range(size):
        if not factor[step, step] > 0:
            raise np.linalg.LinAlgError(f"entry {step} of the diagonal is {factor[step, step]}")
        factor[step, step] = np.sqrt(factor[step, step])
        column = factor[step + 1 :, step]
        column /= factor[step, step]
        factor[step + 1 :, step + 1 :] -= column[:, None] * column
        solution[step] /= factor[step, step]
        solution[step + 1 :] -= column[:, None] * solution[step]
    for step in reversed(range(size)):
        solution[step] /= factor[step, step]
        solution[:step] -= factor[step, :step, None] * solution[step]
    return solution
