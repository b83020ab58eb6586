"""Errors of mean distances within and between two pools of independently trained models.

M unlearned and R retrained models have distances ``(M, R)`` across, and symmetric ones ``(M, M)`` and
``(R, R)`` within, 0 on the diagonal. Models are the unit: an error is that of other training seeds. All
follow from one decomposition of the distances across, ``d(U_i, R_j) = m + a_i + b_j + g_ij``, with
uncorrelated effects `a` and `b` of the models and interactions `g`.
"""

from __future__ import annotations

import math

import numpy as np

from gen_unlearn.metrics.gap import retrain_gap


def pair_mean(within: np.ndarray) -> float:
    """Return the mean of symmetric distances ``(K, K)`` over distinct pairs, K >= 2."""
    return float(within.sum()) / (len(within) * (len(within) - 1))


def cross_error(to: np.ndarray) -> float:
    """Return the error of the mean of distances ``(M, R)`` for other models on each side with two or more.

    It is the root of ``Var(a) / M + Var(b) / R + Var(g) / (M R)``, whose last term the two variances of
    marginal means hold twice.
    """
    sides = [means.var(ddof=1) / len(means) for means in _marginals(to) if len(means) > 1]
    pure = _interaction_variance(to) / to.size
    return math.sqrt(max(sum(sides) - pure, pure))


def floor_error(to: np.ndarray, between: np.ndarray) -> float:
    """Return the error of the mean distance between retrained models, for other retrained models.

    Two have one distance, which does not show how it varies: ``2 Var(b) + Var(g)``, from the distances to the
    unlearned models, stands for it. It is right for a perfect method, and with one unlearned model an upper
    bound, as `g` is then part of `b`.
    """
    means = to.mean(axis=0)
    if len(means) > 2:
        return retrain_gap(means, between, 0.0).floor.standard_error
    pure = _interaction_variance(to)
    return math.sqrt(max(2 * (float(means.var(ddof=1)) - pure / len(to)), 0.0) + pure)


def energy_error(to: np.ndarray, own: np.ndarray, between: np.ndarray) -> float:
    """Return the error of ``2 mean to - mean between - mean own``, all over distinct pairs; M, R >= 2.

    It is that of the delete-one-model jackknife over both pools, less its bias. With `r` and `s` for what `g`
    is within the pools, ``4 Var(g) / (M R) + 2 Var(r) / (R (R - 1)) + 2 Var(s) / (M (M - 1))`` belong to the
    variance. The jackknife counts the first term twice and the others as ``4 Var(r) / (R (R - 2))`` (Efron &
    Stein 1981, Ann. Statist. 9), or not at all in a pool with one pair. For a perfect method there is nothing
    else, and the jackknife states twice the variance or more; the share that is right in this case is the
    least that is returned. A pool of two or three cannot show its own interactions, and takes those of `g`,
    which are the same for a perfect method.
    """
    pure = _interaction_variance(to)
    least = excess = 4 * pure / to.size
    jackknife = 0.0
    for means, within in zip(_marginals(to), (own, between), strict=True):
        count = len(means)
        jackknife += _delete_one_variance(means, within)
        rest = _within_interaction(within) if count > 3 else pure
        least += 2 * rest / (count * (count - 1))
        excess += 2 * rest / ((count - 1) * (count - 2)) if count > 2 else -rest
    share = min(1.0, least / (least + excess)) if least + excess > 0 else 1.0
    return math.sqrt(max(jackknife - excess, share * jackknife))


def _delete_one_variance(to: np.ndarray, within: np.ndarray) -> float:
    """Return the jackknife variance of ``2 mean to - mean within``; of two models the latter is fixed."""
    count = len(to)
    left = 2 * (to.sum() - to) / (count - 1)
    if count > 2:
        left -= (within.sum() / 2 - within.sum(axis=1)) / ((count - 1) * (count - 2) / 2)
    return (count - 1) * float(left.var())


def _interaction_variance(to: np.ndarray) -> float:
    """Estimate ``Var(g)`` without bias from an ``(M, R)`` matrix; 0 for a single row or column."""
    if min(to.shape) < 2:
        return 0.0
    rest = to - to.mean(axis=0) - to.mean(axis=1, keepdims=True) + to.mean()
    return float(np.square(rest).sum()) / ((to.shape[0] - 1) * (to.shape[1] - 1))


def _marginals(to: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return to.mean(axis=1), to.mean(axis=0)


def _within_interaction(within: np.ndarray) -> float:
    """Estimate ``Var(r)`` of ``m + a_i + a_j + r_ij`` without bias from symmetric distances, K >= 4."""
    count = len(within)
    mean = pair_mean(within)
    effects = (within.sum(axis=1) - (count - 1) * mean) / (count - 2)
    rest = (within - mean - effects - effects[:, None])[np.triu_indices(count, 1)]
    return float(np.square(rest).sum()) / (count * (count - 3) / 2)
