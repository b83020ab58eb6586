"""The area under the ROC curve of scores within classes, and the difference of two, with DeLong's errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from gen_unlearn.metrics.estimate import Estimate

Interval = tuple[float, float]

TAIL = 0.025
"""What an interval leaves out on each side."""


@dataclass(frozen=True, eq=False)
class Stratum:
    """Hold the scores of the members and of the outsiders of one class, float64 ``(m,)`` and ``(n,)``."""

    members: np.ndarray
    outsiders: np.ndarray

    @property
    def pairs(self) -> int:
        """Number of pairs of a member and an outsider."""
        return len(self.members) * len(self.outsiders)

    @property
    def disjoint_pairs(self) -> int:
        """Number of pairs that can be formed without using an image twice."""
        return min(len(self.members), len(self.outsiders))

    @property
    def placements(self) -> tuple[np.ndarray, np.ndarray]:
        """Share of the outsiders below each member, and of the members below each outsider, ties half."""
        return _placements(self.members, self.outsiders), _placements(self.outsiders, self.members)


def area_under_curve(strata: Sequence[Stratum]) -> tuple[Estimate, Interval]:
    """Return the area over all pairs within classes, with DeLong's standard error and its 95 % interval.

    The placement of a member is the share of the outsiders of its class below it, and the other way round.
    A class with share ``w`` of the pairs adds ``w^2 var(placements) / images`` for each side to the variance.
    Where all placements are equal, that is 0 and says nothing; then the ``k`` disjoint pairs that can be
    formed stand in, as in `gen_unlearn.metrics.estimate.proportion`: the standard error is ``1 / (k + 1)``,
    and an area of 1 has Clopper and Pearson's limit ``0.025^(1 / k)``, for such an area makes all of them
    agree. Other intervals are symmetric in the logit.

    Args:
        strata: the scores of each class, at least one.
    """
    weights = _weights(strata)
    above, below = zip(*(stratum.placements for stratum in strata), strict=True)
    area = float(weights @ [placements.mean() for placements in above])
    most = area * (1 - area)
    error = math.sqrt(_variance(above, weights, most) + _variance(below, weights, most))
    disjoint = sum(stratum.disjoint_pairs for stratum in strata)
    if error < 1e-12:
        error = 1 / (disjoint + 1)
    if not 0 < area < 1:
        limit = TAIL ** (1 / disjoint)
        return Estimate(area, error), ((limit, 1.0) if area else (0.0, 1 - limit))
    half = stats.norm.isf(TAIL) * error / (area * (1 - area))
    logit = special.logit(area)
    return Estimate(area, error), (float(special.expit(logit - half)), float(special.expit(logit + half)))


def auc_difference(
    member_scores_a: np.ndarray,
    outsider_scores_a: np.ndarray,
    member_scores_b: np.ndarray,
    outsider_scores_b: np.ndarray,
    member_labels: np.ndarray,
    outsider_labels: np.ndarray,
) -> Estimate:
    """Estimate the area of model `a` minus that of model `b`, both scored on the same images.

    DeLong, DeLong and Clarke-Pearson (1988): the variance is that of the differences of each image's two
    placements, within classes as in `area_under_curve`, so that what both models make of an image cancels.
    Where all differences are equal the standard error is ``1 / (k + 1)`` for `k` disjoint pairs. It covers
    the draw of the images, not the training seeds of the models.

    Args:
        member_scores_a: ``(m,)``, higher for likelier members, by the first model.
        outsider_scores_a: ``(n,)``, of images that were never trained on.
        member_scores_b: ``(m,)``, by the second model, in the same order.
        outsider_scores_b: ``(n,)``, in the same order.
        member_labels: integer class of each member, ``(m,)``.
        outsider_labels: integer class of each outsider, ``(n,)``.

    Raises:
        ValueError: if scores and labels do not match, a score is not finite, or no class has both members
            and outsiders.
    """
    first = strata_within_classes(member_scores_a, member_labels, outsider_scores_a, outsider_labels)
    second = strata_within_classes(member_scores_b, member_labels, outsider_scores_b, outsider_labels)
    pairs = [(a.placements, b.placements) for a, b in zip(first, second, strict=True)]
    above = [of_a[0] - of_b[0] for of_a, of_b in pairs]
    below = [of_a[1] - of_b[1] for of_a, of_b in pairs]
    weights = _weights(first)
    difference = float(weights @ [placements.mean() for placements in above])
    most = 1 - difference**2
    error = math.sqrt(_variance(above, weights, most) + _variance(below, weights, most))
    if error < 1e-12:
        error = 1 / (sum(stratum.disjoint_pairs for stratum in first) + 1)
    return Estimate(difference, error)


def strata_within_classes(
    member_scores: np.ndarray,
    member_labels: np.ndarray,
    outsider_scores: np.ndarray,
    outsider_labels: np.ndarray,
) -> list[Stratum]:
    """Split scores by class, in their order; classes without members or without outsiders are left out.

    Args:
        member_scores: ``(m,)``, higher for likelier members.
        member_labels: integer class of each member, ``(m,)``.
        outsider_scores: ``(n,)``.
        outsider_labels: integer class of each outsider, ``(n,)``.

    Raises:
        ValueError: if scores and labels do not match, a score is not finite, or no class has both.
    """
    _require_scores(member_scores, member_labels, "member")
    _require_scores(outsider_scores, outsider_labels, "outsider")
    strata = [
        Stratum(
            member_scores[member_labels == label].astype(np.float64),
            outsider_scores[outsider_labels == label].astype(np.float64),
        )
        for label in np.intersect1d(member_labels, outsider_labels)
    ]
    if not strata:
        raise ValueError(
            f"expected held-out images of a forgotten class, got members of {np.unique(member_labels)} and "
            f"outsiders of {np.unique(outsider_labels)}; hold out images of every class"
        )
    return strata


def _require_scores(scores: np.ndarray, labels: np.ndarray, whose: str) -> None:
    """Raise a ValueError unless scores are finite ``(n,)``, n >= 1, with as many integer labels."""
    if scores.ndim != 1 or len(scores) == 0 or labels.shape != scores.shape or labels.dtype.kind not in "iu":
        raise ValueError(
            f"expected {whose} scores (n,) with n >= 1 and as many integer labels, got {scores.shape} and "
            f"{labels.dtype} {labels.shape}; pass the class of each image"
        )
    if broken := int((~np.isfinite(scores)).sum()):
        raise ValueError(
            f"expected finite {whose} scores, got {broken} of {len(scores)} with NaN or infinity; "
            "check the weights of the model"
        )


def _weights(strata: Sequence[Stratum]) -> np.ndarray:
    """Return the share of each class in the pairs, float64 ``(classes,)``."""
    return np.array([stratum.pairs for stratum in strata]) / sum(stratum.pairs for stratum in strata)


def _placements(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the share of `others` below each score, ties half, as float64 ``(scores,)``."""
    ascending = np.sort(others)
    ranks = np.searchsorted(ascending, scores, "left") + np.searchsorted(ascending, scores, "right")
    return ranks / (2 * len(ascending))


def _variance(placements: Sequence[np.ndarray], weights: np.ndarray, most: float) -> float:
    """Return the variance that the draw of one side adds to a weighted mean of placements.

    Classes with a single image on that side share the variance between them; a single such class takes
    `most`, the greatest that the mean allows.
    """
    variance, single, single_weight = 0.0, [], 0.0
    for values, weight in zip(placements, weights, strict=True):
        if len(values) == 1:
            single.append(values[0])
            single_weight += weight**2
        else:
            variance += weight**2 * values.var(ddof=1) / len(values)
    if single:
        variance += single_weight * (np.var(single, ddof=1) if len(single) > 1 else most)
    return float(variance)
