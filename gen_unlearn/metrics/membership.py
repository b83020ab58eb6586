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

from gen_unlearn.metrics.auc import TAIL, Interval, Stratum, area_under_curve, strata_within_classes
from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.repro import numpy_generator

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
    half; see `gen_unlearn.metrics.auc.area_under_curve` for its error and interval.

    The true-positive rate pools the classes, after the median of the outsiders of its class was taken off
    every score. A member is caught if it scores above the threshold, the lowest outsider that at most `fpr`
    of the outsiders score above: the highest, of fewer than ``1 / fpr``. If it has `k` above it, it lets
    ``(k + 1) / (n + 1)`` of further outsiders pass on average: compare rates at equal numbers of outsiders.
    The median of few outsiders follows them, so that where nothing can be told 50, 10, 3 and 1.4 % of the
    members pass with 1, 2, 5 and 10 outsiders per class: hold out 20 images of each class or more.

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
    if not 0 < fpr < 1:
        raise ValueError(f"expected a false-positive rate in (0, 1), got {fpr}; 1 % is 0.01")
    found = strata_within_classes(member_scores, member_labels, outsider_scores, outsider_labels)
    strata = [Stratum(np.sort(stratum.members), np.sort(stratum.outsiders)) for stratum in found]
    auc, auc_interval = area_under_curve(strata)
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


def _share_above(ascending: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of `ascending` scores strictly above each threshold."""
    return (len(ascending) - np.searchsorted(ascending, thresholds, "right")) / len(ascending)


def _bootstrap_error(strata: Sequence[Stratum], allowed: int, seed: int) -> float:
    """Return the standard deviation of the true-positive rate over replicates drawn within classes.

    Medians and threshold are found anew in each. Members are drawn again as one pool, since a class may
    have a single one: the number caught is binomial. The scores of each class must ascend.
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

    return quantile(TAIL, fewest, m - fewest + 1), quantile(1 - TAIL, most + 1, m - most)


def _roc(members: np.ndarray, outsiders: np.ndarray, allowed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return false- and true-positive rates at thresholds spread evenly over the logarithm of the former."""
    n = len(outsiders)
    ranks = np.unique(np.rint(np.geomspace(1, n, _ROC_POINTS - 3)).astype(np.int64) - 1)
    thresholds = outsiders[n - 1 - np.union1d(ranks, [allowed])]
    rates = np.stack([_share_above(outsiders, thresholds), _share_above(members, thresholds)])
    rates = np.unique(np.concatenate([[[0.0], [0.0]], rates, [[1.0], [1.0]]], axis=1), axis=1)
    return rates[0], rates[1]
