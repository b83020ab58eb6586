"""The score of the NeurIPS 2023 unlearning challenge: forgetting quality from attacks on each image.

Triantafillou et al., "Are we making progress in unlearning?" (arXiv 2406.09073). Even a perfect method does
not reach 1: with 64 models and single thresholds its quality is 0.23, with double thresholds 0.07. Compare a
value only with that of two pools of retrained models of the same sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gen_unlearn.metrics.estimate import Estimate, mean_error
from gen_unlearn.metrics.margins import require_margin_pools

DELTA = 1e-5
BIN_WIDTH = 0.5
BINS = 13
_TILE = 4_000_000

Attacks = Literal["single", "double"]
"""Where an attack sees unlearned models: in or out of all half-lines, or of all intervals too."""


@dataclass(frozen=True)
class EpsilonScore:
    """Hold the quality of forgetting, from how well attacks tell unlearned from retrained models.

    Standard errors are those of other images with the same models.

    Attributes:
        attacks: which attacks were tried on each image.
        quality: F, the mean over images of ``2 / 2^bin``, in (0, 1].
        median_epsilon: median over images of the largest epsilon; infinite if half of them are told apart.
        retain_ratio: accuracy on retained images over that of retrained models.
        test_ratio: accuracy on test images over that of retrained models.
        score: `quality` times both ratios.
        models: number of unlearned models.
        retrained: number of retrained models.
        per_image: largest epsilon of each image, float64 ``(n,)``, 0 to infinity.
    """

    attacks: Attacks
    quality: Estimate
    median_epsilon: float
    retain_ratio: float
    test_ratio: float
    score: Estimate
    models: int
    retrained: int
    per_image: np.ndarray = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return all but the values of single images as a JSON-able dictionary; infinity becomes `None`."""
        plain = {name: value for name, value in vars(self).items() if name != "per_image"}
        plain.update(quality=self.quality.as_dict(), score=self.score.as_dict())
        if math.isinf(self.median_epsilon):
            plain["median_epsilon"] = None
        return plain


def epsilon_score(
    unlearned: np.ndarray,
    retrained: np.ndarray,
    retain_ratio: float,
    test_ratio: float,
    attacks: Attacks = "single",
    delta: float = DELTA,
) -> EpsilonScore:
    """Compute the score of the challenge: ``F * RA_U / RA_R * TA_U / TA_R``.

    Args:
        unlearned: margins of the forgotten images under each unlearned model, ``(models, n)``, n >= 2.
        retrained: the same under each retrained model, ``(retrained, n)``.
        retain_ratio: ``RA_U / RA_R``, mean accuracy on retained images over that of retrained models.
        test_ratio: ``TA_U / TA_R``, the same on test images.
        attacks: which attacks are tried on each image.
        delta: delta of the (epsilon, delta) guarantee, in [0, 1).

    Raises:
        ValueError: if the shapes do not match, a pool is empty, a margin or ratio is not finite, there is one
            image, or another argument is out of range.
    """
    if not (math.isfinite(retain_ratio) and math.isfinite(test_ratio) and min(retain_ratio, test_ratio) >= 0):
        raise ValueError(
            f"expected finite ratios of accuracies >= 0, got {retain_ratio} and {test_ratio}; "
            "divide by the accuracy of the retrained models"
        )
    per_image = epsilons(unlearned, retrained, attacks, delta)
    if len(per_image) < 2:
        raise ValueError(
            "expected two images or more, got one, which has no standard error; pass more images"
        )
    passed = qualities(per_image)
    quality = Estimate(float(passed.mean()), mean_error(passed, None))
    return EpsilonScore(
        attacks,
        quality=quality,
        median_epsilon=_median(per_image),
        retain_ratio=retain_ratio,
        test_ratio=test_ratio,
        score=quality.scaled(retain_ratio * test_ratio),
        models=len(unlearned),
        retrained=len(retrained),
        per_image=per_image,
    )


def attack_epsilons(fpr: np.ndarray, fnr: np.ndarray, delta: float = DELTA) -> np.ndarray:
    """Compute the largest epsilon that the error rates of attacks refute.

    ``max(log(1 - delta - FPR) - log FNR, log(1 - delta - FNR) - log FPR)`` of the terms that are defined.
    An attack without errors gives infinity. One that makes errors of one kind only is discarded, since rates
    of few models are 0 by chance; so is one without a defined term. Discarded attacks are minus infinity.

    Args:
        fpr: false-positive rates, in [0, 1].
        fnr: false-negative rates, in [0, 1], of a shape that broadcasts with `fpr`.
        delta: delta of the (epsilon, delta) guarantee, in [0, 1).

    Raises:
        ValueError: if a rate is not in [0, 1] or delta not in [0, 1).
    """
    if not 0 <= delta < 1:
        raise ValueError(f"expected a delta in [0, 1), got {delta}; the challenge took 1e-5")
    fpr, fnr = np.broadcast_arrays(np.asarray(fpr, np.float64), np.asarray(fnr, np.float64))
    if not ((fpr >= 0) & (fpr <= 1) & (fnr >= 0) & (fnr <= 1)).all():
        raise ValueError("expected error rates in [0, 1], got others; divide counts by the number of models")
    found = np.full(fpr.shape, -np.inf)
    both = (fpr > 0) & (fnr > 0)
    for one, other in ((fpr, fnr), (fnr, fpr)):
        defined = both & (1 - delta - one > 0)
        found[defined] = np.maximum(found[defined], np.log(1 - delta - one[defined]) - np.log(other[defined]))
    found[(fpr == 0) & (fnr == 0)] = np.inf
    return found


def epsilons(
    unlearned: np.ndarray, retrained: np.ndarray, attacks: Attacks = "single", delta: float = DELTA
) -> np.ndarray:
    """Compute the largest epsilon over all attacks on each image, float64 ``(n,)``, 0 to infinity.

    An attack calls a model unlearned if its margin lies inside a half-line or an interval, or outside. All
    that differ on these margins are tried. An image whose attacks are all discarded has the epsilon 0.
    Double thresholds take time and memory proportional to the square of the number of models.

    Args:
        unlearned: margins ``(models, n)``, one model or more.
        retrained: margins ``(retrained, n)``, one or more.
        attacks: which attacks are tried.
        delta: delta of the (epsilon, delta) guarantee, in [0, 1).

    Raises:
        ValueError: if the shapes do not match, a pool is empty, a margin is not finite, the attacks are
            unknown, or delta is out of range.
    """
    if attacks not in ("single", "double"):
        raise ValueError(f"expected attacks 'single' or 'double', got {attacks!r}; name one of them")
    unlearned, retrained = require_margin_pools(unlearned, retrained, 1)
    models, others = len(unlearned), len(retrained)
    table = attack_epsilons(
        np.arange(others + 1)[:, None] / others, np.arange(models + 1)[None] / models, delta
    ).ravel()
    table = np.maximum(table, table[::-1])  # the complement of an attack has the counts of the reverse
    codes = _codes(unlearned, retrained)
    if attacks == "single":
        return np.maximum(table[codes + models].max(axis=0), 0.0)
    first, second = np.triu_indices(len(codes), 1)
    rows = max(1, _TILE // len(first))
    found = [
        table[tile[second] - tile[first] + models].max(axis=0)
        for tile in np.split(codes, range(rows, codes.shape[1], rows), axis=1)
    ]
    return np.maximum(np.concatenate(found), 0.0)


def epsilon_bins(values: np.ndarray) -> np.ndarray:
    """Return the bin ``floor(epsilon / 0.5) + 1``, 1 to 13, of each epsilon >= 0 as int64."""
    if not (values >= 0).all():
        raise ValueError(f"expected epsilons >= 0, got {values.min()}; take those of `epsilons`")
    return np.minimum(np.floor(values / BIN_WIDTH), BINS - 1).astype(np.int64) + 1


def qualities(values: np.ndarray) -> np.ndarray:
    """Return H, ``2 / 2^bin``, of each epsilon >= 0 as float64: 1 down to ``2^-12``."""
    return np.ldexp(2.0, -epsilon_bins(values))


def _codes(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """Code the counts of both pools below each threshold as one integer, int64 ``(thresholds, n)``.

    The code of `r` retrained and `u` unlearned margins is ``r (models + 1) - u``. The difference of two
    codes, plus `models`, is the place of the interval in a table of false positives by false negatives.
    Thresholds between equal margins take the counts of the next that is not.
    """
    models = len(unlearned)
    margins = np.concatenate([unlearned, retrained])
    order = np.argsort(margins, axis=0, kind="stable")
    ascending = np.take_along_axis(margins, order, axis=0)
    steps = np.where(order < models, -1, models + 1)
    codes = np.concatenate([np.zeros((1, margins.shape[1]), np.int64), np.cumsum(steps, axis=0)])
    places = np.broadcast_to(np.arange(len(codes))[:, None], codes.shape).copy()
    places[1:-1][ascending[1:] == ascending[:-1]] = len(codes) - 1
    places = np.minimum.accumulate(places[::-1], axis=0)[::-1]
    return np.take_along_axis(codes, places, axis=0)


def _median(values: np.ndarray) -> float:
    """Return the upper median, which is defined among infinite values too."""
    return float(np.sort(values)[len(values) // 2])
