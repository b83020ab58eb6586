"""Membership inference: whether scores tell forgotten images from held-out ones.

A deleted class differs from the other classes whether it was trained on or not. Therefore images are only
compared with held-out images of their own class. What counts is the value of a model that was retrained
without the forgotten images: it is 0.5 only where forgotten and held-out images are alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.repro import numpy_generator

Interval = tuple[float, float]

_TAIL = 0.025
_REPLICATES = 400
_ROC_POINTS = 200
_TILE = 4_000_000


@dataclass(frozen=True, eq=False)
class MembershipResult:
    """Hold how well scores tell members from outsiders; intervals cover 95 %.

    Attributes:
        auc: probability that a member scores higher than an outsider of its class.
        auc_interval: of `auc`.
        tpr: share of the members that are caught where at most `fpr` of the outsiders are.
        tpr_interval: of the rate where exactly `fpr` of all possible outsiders are caught.
        fpr: false-positive rate of `tpr`.
        roc: false- and true-positive rates of the curve that `tpr` lies on, float64 of equal length and
            ascending, from (0, 0) to (1, 1); in between, steps to draw.
        members: members that were compared.
        outsiders: outsiders that they were compared with.
        left_out: members of classes without outsiders, which were not compared.
    """

    auc: Estimate
    auc_interval: Interval
    tpr: Estimate
    tpr_interval: Interval
    fpr: float
    roc: tuple[np.ndarray, np.ndarray]
    members: int
    outsiders: int
    left_out: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything as a JSON-able dictionary."""
        return {
            **vars(self),
            "auc": self.auc.as_dict(),
            "auc_interval": list(self.auc_interval),
            "tpr": self.tpr.as_dict(),
            "tpr_interval": list(self.tpr_interval),
            "roc": [rates.tolist() for rates in self.roc],
        }


@dataclass(frozen=True, eq=False)
class _Stratum:
    """Hold the scores of one class, each ascending float64."""

    members: np.ndarray
    outsiders: np.ndarray

    @property
    def pairs(self) -> int:
        """Number of pairs of a member and an outsider."""
        return len(self.members) * len(self.outsiders)


def membership_result(
    member_scores: np.ndarray,
    member_labels: np.ndarray,
    outsider_scores: np.ndarray,
    outsider_labels: np.ndarray,
    seed: int = 0,
    fpr: float = 0.01,
) -> MembershipResult:
    """Measure how well scores tell members from outsiders, within classes.

    The area under the ROC curve is that of all pairs of a member and an outsider of one class; ties count
    half. Its standard error is DeLong's (1988), its interval is symmetric in the logit.

    The true-positive rate pools the classes, after the median of the outsiders of its class was taken off
    every score. A member is caught if it scores above the threshold, the lowest outsider that at most `fpr`
    of the outsiders score above: the highest, of fewer than ``1 / fpr``. If it has `k` above it, it lets
    ``(k + 1) / (n + 1)`` of further outsiders pass on average: compare rates at equal numbers of outsiders.

    Args:
        member_scores: ``(m,)``, higher for likelier members.
        member_labels: integer class of each member, ``(m,)``.
        outsider_scores: ``(n,)`` scores of images that were never trained on.
        outsider_labels: integer class of each outsider, ``(n,)``. Classes without members do not count.
        seed: seed of the bootstrap behind the standard error of the true-positive rate.
        fpr: false-positive rate, in (0, 1).

    Raises:
        ValueError: if scores and labels do not match, a score is not finite, no class has both members and
            outsiders, or `fpr` is not in (0, 1).
    """
    _require_scores(member_scores, member_labels, "member")
    _require_scores(outsider_scores, outsider_labels, "outsider")
    if not 0 < fpr < 1:
        raise ValueError(f"expected a false-positive rate in (0, 1), got {fpr}; 1 % is 0.01")
    strata = [
        _Stratum(
            np.sort(member_scores[member_labels == label].astype(np.float64)),
            np.sort(outsider_scores[outsider_labels == label].astype(np.float64)),
        )
        for label in np.intersect1d(member_labels, outsider_labels)
    ]
    if not strata:
        raise ValueError(
            f"expected held-out images of a forgotten class, got members of {np.unique(member_labels)} and "
            f"outsiders of {np.unique(outsider_labels)}; hold out images of every class"
        )
    auc, auc_interval = _auc(strata)
    centres = [np.median(stratum.outsiders) for stratum in strata]
    members = np.sort(np.concatenate([s.members - c for s, c in zip(strata, centres, strict=True)]))
    outsiders = np.sort(np.concatenate([s.outsiders - c for s, c in zip(strata, centres, strict=True)]))
    allowed = math.floor(fpr * len(outsiders) + 1e-9)
    return MembershipResult(
        auc=auc,
        auc_interval=auc_interval,
        tpr=Estimate(
            float(_share_above(members, outsiders[-1 - allowed])),
            max(_bootstrap_error(strata, allowed, seed), 1 / (len(members) + 1)),
        ),
        tpr_interval=_rate_interval(members, outsiders, fpr),
        fpr=fpr,
        roc=_roc(members, outsiders, allowed),
        members=len(members),
        outsiders=len(outsiders),
        left_out=len(member_scores) - len(members),
    )


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


def _auc(strata: Sequence[_Stratum]) -> tuple[Estimate, Interval]:
    """Return the area over all pairs within classes, with DeLong's standard error and the interval.

    The placement of a member is the share of the outsiders of its class below it, and the other way round.
    A class with share ``w`` of the pairs adds ``w^2 var(placements) / images`` for each side to the variance.
    Where all placements are equal, that is 0 and says nothing; then the ``k`` disjoint pairs that can be
    formed stand in, as in `proportion`: the standard error is ``1 / (k + 1)``, and an area of 1 has Clopper
    and Pearson's limit ``0.025^(1 / k)``, for such an area makes all of them agree.
    """
    weights = np.array([stratum.pairs for stratum in strata]) / sum(stratum.pairs for stratum in strata)
    above = [_placements(stratum.members, stratum.outsiders) for stratum in strata]
    below = [_placements(stratum.outsiders, stratum.members) for stratum in strata]
    area = float(weights @ [placements.mean() for placements in above])
    error = math.sqrt(_placement_variance(above, weights, area) + _placement_variance(below, weights, area))
    disjoint = sum(min(len(stratum.members), len(stratum.outsiders)) for stratum in strata)
    if error < 1e-12:
        error = 1 / (disjoint + 1)
    if not 0 < area < 1:
        limit = _TAIL ** (1 / disjoint)
        return Estimate(area, error), ((limit, 1.0) if area else (0.0, 1 - limit))
    half = stats.norm.isf(_TAIL) * error / (area * (1 - area))
    logit = special.logit(area)
    return Estimate(area, error), (float(special.expit(logit - half)), float(special.expit(logit + half)))


def _placements(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the share of the ascending `others` below each score, ties half, as float64 ``(scores,)``."""
    ranks = np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")
    return ranks / (2 * len(others))


def _placement_variance(placements: Sequence[np.ndarray], weights: np.ndarray, area: float) -> float:
    """Return the variance that the draw of one side adds to the area.

    Classes with a single image on that side share the variance between them; a single such class takes the
    most that its mean allows, ``area (1 - area)``.
    """
    variance, single, single_weight = 0.0, [], 0.0
    for values, weight in zip(placements, weights, strict=True):
        if len(values) == 1:
            single.append(values[0])
            single_weight += weight**2
        else:
            variance += weight**2 * values.var(ddof=1) / len(values)
    if single:
        spread = np.var(single, ddof=1) if len(single) > 1 else area * (1 - area)
        variance += single_weight * spread
    return float(variance)


def _share_above(ascending: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of `ascending` scores strictly above each threshold."""
    return (len(ascending) - np.searchsorted(ascending, thresholds, "right")) / len(ascending)


def _bootstrap_error(strata: Sequence[_Stratum], allowed: int, seed: int) -> float:
    """Return the standard deviation of the true-positive rate over replicates drawn within classes.

    Medians and threshold are found anew in each. Members are drawn again as one pool, since a class may
    have a single one: the number caught is binomial.
    """
    generator = numpy_generator("membership bootstrap", seed)
    size, total = sum(len(s.outsiders) for s in strata), sum(len(s.members) for s in strata)
    rates: list[np.ndarray] = []
    tile = max(1, _TILE // size)
    for start in range(0, _REPLICATES, tile):
        rows = min(tile, _REPLICATES - start)
        drawn = [generator.choice(s.outsiders, (rows, len(s.outsiders))) for s in strata]
        centres = [np.median(scores, axis=1) for scores in drawn]
        centred = np.concatenate([s - c[:, None] for s, c in zip(drawn, centres, strict=True)], axis=1)
        thresholds = np.partition(centred, size - 1 - allowed, axis=1)[:, size - 1 - allowed]
        chances = [
            _share_above(stratum.members, thresholds + centre) * (len(stratum.members) / total)
            for stratum, centre in zip(strata, centres, strict=True)
        ]
        rates.append(generator.binomial(total, np.clip(np.sum(chances, axis=0), 0, 1)) / total)
    return float(np.concatenate(rates).std())


def _rate_interval(members: np.ndarray, outsiders: np.ndarray, fpr: float) -> Interval:
    """Return the interval of the true-positive rate above the score that `fpr` of all outsiders exceed.

    How many of `n` outsiders exceed that score is Binomial(n, fpr), whatever the distribution; it lies
    between that outsider and the next. Each case gives a limit of Clopper and Pearson, a Beta quantile; the
    interval is that of their mixture. A resampled threshold would never lie above the highest outsider: with
    fewer than 100 of them its intervals cover 60 to 90 %.
    """
    n, m = len(outsiders), len(members)
    exceeding = np.arange(int(stats.binom.isf(1e-9, n, fpr)) + 1)
    chance = stats.binom.pmf(exceeding, n, fpr)
    bounds = np.concatenate([[np.inf], outsiders[::-1], [-np.inf]])
    fewest = m - np.searchsorted(members, bounds[exceeding], "right")
    most = m - np.searchsorted(members, bounds[exceeding + 1], "left")

    def below(rate: float, successes: np.ndarray, failures: np.ndarray) -> float:
        """Return the mixture's probability of a rate below `rate`; no successes mean 0, no failures 1."""
        inside = (successes > 0) & (failures > 0)
        beta = special.betainc(np.where(inside, successes, 1), np.where(inside, failures, 1), rate)
        return float(chance @ np.where(inside, beta, successes == 0))

    def quantile(level: float, successes: np.ndarray, failures: np.ndarray) -> float:
        if below(0.0, successes, failures) >= level:
            return 0.0
        if below(1 - 1e-12, successes, failures) <= level:
            return 1.0
        return float(optimize.brentq(lambda rate: below(rate, successes, failures) - level, 0, 1 - 1e-12))

    return quantile(_TAIL, fewest, m - fewest + 1), quantile(1 - _TAIL, most + 1, m - most)


def _roc(members: np.ndarray, outsiders: np.ndarray, allowed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return false- and true-positive rates at thresholds spread evenly over the logarithm of the former."""
    n = len(outsiders)
    ranks = np.unique(np.rint(np.geomspace(1, n, _ROC_POINTS - 3)).astype(np.int64) - 1)
    thresholds = outsiders[n - 1 - np.union1d(ranks, [allowed])]
    rates = np.stack([_share_above(outsiders, thresholds), _share_above(members, thresholds)])
    rates = np.unique(np.concatenate([[[0.0], [0.0]], rates, [[1.0], [1.0]]], axis=1), axis=1)
    return rates[0], rates[1]
