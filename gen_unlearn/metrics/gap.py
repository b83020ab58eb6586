"""The retrain gap: how much farther a model lies from retrained models than these lie from each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gen_unlearn.metrics.estimate import Estimate

_NOTES = {
    1: "one oracle: the floor is the oracle against itself from other noise, without the noise of training",
    2: "two oracles: the noise of training is known from the difference of two distances alone",
    3: "errors hold the noise of training the oracles and of sampling, at a fixed model",
}
"""What the errors hold, by number of oracles; 3 stands for more."""


@dataclass(frozen=True)
class RetrainGap:
    """Compare a model's distance to oracles, models retrained without the deleted images, with theirs.

    Attributes:
        gap: `distance` minus `floor`; its mean is 0 for one more retraining.
        distance: mean distance from the model to an oracle.
        floor: mean distance between two oracles.
        oracles: number of oracles `K`.
        retraining_spread: standard deviation of the gap that one more retraining would have, `None` below
            three oracles. A gap is told from 0 by this number, not by its own error, which is at a fixed
            model and leaves out that a retrained model has a seed as well.
        note: what the errors cover.
    """

    gap: Estimate
    distance: Estimate
    floor: Estimate
    oracles: int
    retraining_spread: float | None
    note: str


def retrain_gap(
    to_oracles: Sequence[float] | np.ndarray,
    between_oracles: Sequence[Sequence[float]] | np.ndarray,
    sampling_error: float,
) -> RetrainGap:
    """Compute ``gap = mean_i D(G, O_i) - mean_{i<j} D(O_i, O_j)`` with its standard error.

    All distances are to be taken at equal numbers of images: a bias that grows with fewer images then
    cancels. The gap is a U-statistic of the oracles, with the kernel ``(D(G, O_i) + D(G, O_j)) / 2 - D(O_i,
    O_j)``. Its error, for K >= 3 oracles, is that of the draw of oracles at a fixed model, from the
    delete-one-oracle jackknife less its bias (see `_u_statistic_variance`), and `sampling_error` in
    quadrature. The images of an oracle are redrawn with its seed, so that their noise is in the jackknife
    already.

    With K = 2 nothing shows how the one distance between oracles varies: it is taken to vary like the
    two distances to the model, ``s^2 = (D_1 - D_2)^2 / 2``, and the gap to have variance ``s^2 / 2 + s^2``:
    right for a retraining, too large for a model far away, and with one degree of freedom uncertain.
    With K = 1 the floor is the oracle against itself, from other noise; `sampling_error` stands for its
    error too, as an upper bound.

    Args:
        to_oracles: distances from the model to each oracle, ``(K,)``.
        between_oracles: distances between oracles, symmetric ``(K, K)``. The diagonal is ignored, except
            with K = 1, where it is the distance of the oracle to itself, from other noise.
        sampling_error: standard error of one distance from the draw of the model's images alone.

    Raises:
        ValueError: if the shapes do not fit, the matrix is not symmetric, or a number is not finite.
    """
    to, between = np.array(to_oracles, np.float64), np.array(between_oracles, np.float64)
    count = to.size
    if count > 1 and between.shape == (count, count):
        np.fill_diagonal(between, 0.0)
    _require_distances(to, between, sampling_error)
    spread = float(to.var(ddof=1)) if count > 1 else 0.0
    retraining = None
    if count == 1:
        floor = Estimate(float(between[0, 0]), sampling_error)
        variance = sampling_error**2
    elif count == 2:
        floor = Estimate(float(between[0, 1]), math.sqrt(spread))
        variance = 1.5 * spread
    else:
        pure = _pure_pair_variance(to, between)
        floor_variance = _u_statistic_variance(between, pure)
        floor = _estimate(float(between[np.triu_indices(count, 1)].mean()), floor_variance)
        variance = _u_statistic_variance((to[:, None] + to[None, :]) / 2 - between, pure)
        retraining = math.sqrt(_retraining_variance(floor_variance, pure, count))
    distance = _estimate(float(to.mean()), spread / count, sampling_error)
    gap = _estimate(distance.value - floor.value, variance, sampling_error)
    return RetrainGap(gap, distance, floor, count, retraining, _NOTES[min(count, 3)])


def _u_statistic_variance(kernel: np.ndarray, pure: float) -> float:
    """Return the variance of the mean over pairs of a symmetric kernel ``(K, K)``, K >= 3.

    With the kernel split into ``theta + g_i + g_j + r_ij``, uncorrelated, the variance of the mean is
    ``4 Var(g) / K + 2 Var(r) / (K (K - 1))``. The delete-one jackknife has the mean ``4 Var(g) / K +
    4 Var(r) / (K (K - 2))``, so that ``2 Var(r) / ((K - 1) (K - 2))`` too much is taken off (Efron & Stein
    1981, Ann. Statist. 9). Without it the error is up to twice too large at K = 3, where no `g` varies; the
    variance of that case, ``(K - 2) / (2 (K - 1))`` of the jackknife, is the least that is returned.

    Args:
        kernel: the kernel of each pair; the diagonal is ignored.
        pure: an estimate of ``Var(r)``.
    """
    count = len(kernel)
    sums = kernel.sum(axis=1) - np.diag(kernel)
    means = (sums.sum() / 2 - sums) / ((count - 1) * (count - 2) / 2)  # over pairs without oracle i
    jackknife = (count - 1) / count * float(np.square(means - means.mean()).sum())
    least = (count - 2) / (2 * (count - 1))
    return max(jackknife - 2 * pure / ((count - 1) * (count - 2)), least * jackknife)


def _pure_pair_variance(to: np.ndarray, between: np.ndarray) -> float:
    """Estimate ``Var(r)`` of ``D(O_i, O_j) = m + a_i + a_j + r_ij``, K >= 3.

    Three distances between three oracles cannot tell `r` from `a`; the distances to the model can, if an
    oracle that lies far from other oracles lies as far from the model: the covariance of ``D(G, O_i)`` with
    `a_i` is then ``Var(a)``. This is exact for every quadratic distance between models that differ by
    symmetric noise. The squares of the distances between oracles about their mean have the expectation
    ``(K - 1) (K - 2) Var(a) + (K (K - 1) / 2 - 1) Var(r)``.
    """
    count = len(to)
    values = between[np.triu_indices(count, 1)]
    effects = (between.sum(axis=1) - (count - 1) * values.mean()) / (count - 2)
    single = float((to - to.mean()) @ effects) / (count - 1)
    squares = float(np.square(values - values.mean()).sum())
    rest = squares - (count - 1) * (count - 2) * single
    return min(max(rest, 0.0), squares) / (len(values) - 1)


def _retraining_variance(floor_variance: float, pure: float, count: int) -> float:
    """Return ``Var(a) (1 + 1 / K) + Var(r) (K + 1) / (K (K - 1))``, that of one more retraining's gap.

    Its distances to the oracles are ``m + a + a_i + r_i``, and ``Var(a)`` follows from the variance of the
    floor.
    """
    single = max(0.0, floor_variance - 2 * pure / (count * (count - 1))) * count / 4
    return single * (1 + 1 / count) + pure * (count + 1) / (count * (count - 1))


def _estimate(value: float, variance: float, sampling_error: float = 0.0) -> Estimate:
    return Estimate(value, math.hypot(math.sqrt(variance), sampling_error))


def _require_distances(to: np.ndarray, between: np.ndarray, sampling_error: float) -> None:
    if to.ndim != 1 or len(to) == 0 or between.shape != (len(to), len(to)):
        raise ValueError(
            f"expected K >= 1 distances to oracles and a (K, K) matrix between them, got shapes {to.shape} "
            f"and {between.shape}; measure every pair of oracles"
        )
    if not np.isfinite(to).all() or not np.isfinite(between).all():
        raise ValueError("expected finite distances, got NaN or infinity; measure every pair of oracles")
    if not np.allclose(between, between.T, rtol=1e-6, atol=1e-9):
        raise ValueError(
            "expected a symmetric matrix of distances between oracles, got one that is not; fill both halves"
        )
    if not (math.isfinite(sampling_error) and sampling_error >= 0):
        raise ValueError(
            f"expected a finite sampling error >= 0, got {sampling_error}; take that of one distance"
        )
