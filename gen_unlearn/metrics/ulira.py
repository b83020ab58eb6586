"""U-LiRA: whether each image's margins tell unlearned models from retrained ones.

Hayes et al., "Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy"
(arXiv 2403.01218), with every model scored by normals that were fitted without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from gen_unlearn.metrics.auc import TAIL, Interval
from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.margins import require_margin_pools
from gen_unlearn.repro import numpy_generator

LEAST_NEGATIVES = {0.01: 100, 0.001: 10_000}
"""Scored retrained margins without which the true-positive rate at a false-positive rate is left out."""

LEAST_MODELS = 3
"""Smallest pool: one model is scored by two others."""

_LEAST_VARIANCE = 1e-12
_REPLICATES = 400

Variance = Literal["averaged", "separate"]
"""Variance of the two fitted normals: the mean of both for each image, or each its own."""


@dataclass(frozen=True)
class UliraResult:
    """Hold how well an attack on each image tells unlearned from retrained models.

    Standard errors and 95 % intervals are those of other images with the same models. Models that shift many
    images at once vary more than that: `model_error` is for other models.

    Attributes:
        auc: probability that an unlearned margin scores higher than a retrained one; 0.5 is perfect.
        auc_interval: of `auc`.
        model_error: standard error of `auc` of other models on the same images; `None` below four models.
            It is the jackknife over indices, which is too large if anything: 1.5 to 2 times where both pools
            follow one law, 1.2 times where they differ.
        tpr_1: share of the unlearned margins that are found where at most 1 % of the retrained ones are.
        tpr_1_interval: of `tpr_1`.
        tpr_01: the same at 0.1 %; `None` below 10,000 scored retrained margins.
        tpr_01_interval: of `tpr_01`.
        variance: variance of the fitted normals.
        scored: models of each pool that were scored.
        images: number of images.
    """

    auc: Estimate
    auc_interval: Interval
    model_error: float | None
    tpr_1: Estimate | None
    tpr_1_interval: Interval | None
    tpr_01: Estimate | None
    tpr_01_interval: Interval | None
    variance: Variance
    scored: int
    images: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything as a JSON-able dictionary."""
        plain: dict[str, Any] = {}
        for name, value in vars(self).items():
            plain[name] = value.as_dict() if isinstance(value, Estimate) else value
            if isinstance(value, tuple):
                plain[name] = list(value)
        return plain


def ulira_loo(
    unlearned_margins: np.ndarray,
    retrained_margins: np.ndarray,
    variance: Variance = "averaged",
    seed: int = 0,
) -> UliraResult:
    """Attack each image with normals that are fitted to other models than the one that is scored.

    See `ulira_scores`. Scores of all images and models are pooled. With 4 fitted models normal margins that
    differ by one standard deviation read 0.70 with the averaged variance and 0.66 with separate ones; the
    best attack reaches 0.76.

    Args:
        unlearned_margins: ``(models, n)``, three models or more, of `gen_unlearn.metrics.margins.margins`.
        retrained_margins: ``(retrained, n)``, three or more. Pass two halves of one pool for the floor.
        variance: variance of the fitted normals.
        seed: seed of the bootstrap over images behind errors and intervals.

    Raises:
        ValueError: if the shapes do not match, a pool has fewer than three models, a margin is not finite,
            or the variance is unknown.
    """
    positive, negative = ulira_scores(unlearned_margins, retrained_margins, variance)
    rates = [rate for rate, least in LEAST_NEGATIVES.items() if negative.size >= least]
    values, replicates = _rates(positive, negative, rates, seed)
    images = positive.shape[1]
    found = [_with_interval(value, drawn, images) for value, drawn in zip(values, replicates.T, strict=True)]
    tprs: list[tuple[Estimate, Interval] | tuple[None, None]] = [*found[1:], (None, None), (None, None)]
    return UliraResult(
        auc=found[0][0],
        auc_interval=found[0][1],
        model_error=_model_error(unlearned_margins, retrained_margins, variance),
        tpr_1=tprs[0][0],
        tpr_1_interval=tprs[0][1],
        tpr_01=tprs[1][0],
        tpr_01_interval=tprs[1][1],
        variance=variance,
        scored=len(positive),
        images=images,
    )


def ulira_scores(
    unlearned_margins: np.ndarray, retrained_margins: np.ndarray, variance: Variance = "averaged"
) -> tuple[np.ndarray, np.ndarray]:
    """Score margins by ``log N(m; mean_U, var_U) - log N(m; mean_R, var_R)``, fitted without model `k`.

    The margins of index `k` of both pools are scored by normals that are fitted to all other indices of both.
    A model that is part of its own fit would be told apart without any leak (0.79 with 4 models), and one
    that is left out of one pool only would read less than 0.5. Only indices that both pools have are scored;
    further models of the larger pool are part of every fit.

    Args:
        unlearned_margins: ``(models, n)``, three models or more.
        retrained_margins: ``(retrained, n)``, three or more.
        variance: ``"averaged"`` gives both normals the mean of their variances.

    Returns:
        Scores of the unlearned and of the retrained margins, float64, each ``(min(models, retrained), n)``,
        higher for likelier members.

    Raises:
        ValueError: if the shapes do not match, a pool has fewer than three models, a margin is not finite,
            or the variance is unknown.
    """
    if variance not in ("averaged", "separate"):
        raise ValueError(f"expected a variance 'averaged' or 'separate', got {variance!r}; name one of them")
    unlearned, retrained = require_margin_pools(unlearned_margins, retrained_margins, LEAST_MODELS)
    scored = min(len(unlearned), len(retrained))
    mean_u, variance_u = _left_out(unlearned, scored)
    mean_r, variance_r = _left_out(retrained, scored)
    if variance == "averaged":
        variance_u = variance_r = (variance_u + variance_r) / 2

    def ratio(margins: np.ndarray) -> np.ndarray:
        likelihood_u = np.log(variance_u) + (margins - mean_u) ** 2 / variance_u
        likelihood_r = np.log(variance_r) + (margins - mean_r) ** 2 / variance_r
        return (likelihood_r - likelihood_u) / 2

    return ratio(unlearned[:scored]), ratio(retrained[:scored])


def _left_out(pool: np.ndarray, scored: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of ``(models, n)`` without model `k`, for the first `scored` models."""
    models = len(pool)
    mean = pool.mean(axis=0)
    deviations = pool - mean
    squares = (deviations**2).sum(axis=0)
    own = deviations[:scored]
    variance = (squares - own**2 * models / (models - 1)) / (models - 2)
    return mean - own / (models - 1), np.maximum(variance, _LEAST_VARIANCE)


def _rates(
    positive: np.ndarray, negative: np.ndarray, fprs: list[float], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return area and true-positive rates, ``(1 + fprs,)``, and replicates of them over images.

    Scores are sorted once; a replicate gives each image a weight. Equal scores are one step of the curve.
    """
    images = positive.shape[1]
    scores = np.concatenate([positive.ravel(), negative.ravel()])
    order = np.argsort(-scores, kind="stable")
    image = np.tile(np.arange(images), 2 * len(positive))[order]
    is_positive = order < positive.size
    last_of_equal = np.flatnonzero(np.diff(scores[order], append=np.inf))

    def measure(weights: np.ndarray) -> list[float]:
        own = weights[image]
        all_above = np.cumsum(own)
        found = np.cumsum(own * is_positive)
        found, above = found[last_of_equal], (all_above - found)[last_of_equal]
        total = float(above[-1])
        area = float(np.trapezoid(found, above)) + found[0] * above[0] / 2
        steps = [np.searchsorted(above, fpr * total + 1e-9, "right") for fpr in fprs]
        return [area / total**2, *(float(found[step - 1]) / total if step else 0.0 for step in steps)]

    generator = numpy_generator("U-LiRA bootstrap", seed)
    drawn = [
        measure(np.bincount(generator.integers(images, size=images), minlength=images))
        for _ in range(_REPLICATES)
    ]
    return np.array(measure(np.ones(images, dtype=np.int64))), np.array(drawn)


def _model_error(unlearned: np.ndarray, retrained: np.ndarray, variance: Variance) -> float | None:
    """Return the error of the area from leaving out each index of both pools; see `UliraResult.model_error`.

    Further models of a larger pool go with the index that they equal modulo the size of the smaller one.
    """
    scored = min(len(unlearned), len(retrained))
    if scored <= LEAST_MODELS:
        return None
    areas = []
    for k in range(scored):
        kept_u, kept_r = (pool[np.arange(len(pool)) % scored != k] for pool in (unlearned, retrained))
        areas.append(_area(*ulira_scores(kept_u, kept_r, variance)))
    return float(np.std(areas)) * math.sqrt(scored - 1)


def _area(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the share of pairs in which the positive score is higher, ties half."""
    ranks = stats.rankdata(np.concatenate([positive.ravel(), negative.ravel()]))[: positive.size]
    return float(ranks.mean() - (positive.size + 1) / 2) / negative.size


def _with_interval(value: float, replicates: np.ndarray, images: int) -> tuple[Estimate, Interval]:
    """Return a rate with its bootstrap error and interval.

    Where no replicate differs, they are those of `images` trials that all agree.
    """
    error = float(replicates.std(ddof=1))
    if error < 1e-12:
        slack = 1 - TAIL ** (1 / images)
        return Estimate(value, 1 / (images + 1)), (max(0.0, value - slack), min(1.0, value + slack))
    low, high = np.quantile(replicates, [TAIL, 1 - TAIL])
    return Estimate(value, error), (float(low), float(high))
