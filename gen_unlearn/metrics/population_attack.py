"""Population attacks: whether one score of one model tells forgotten images from held-out ones.

Scores are higher for likelier members (see `gen_unlearn.metrics.margins`). Ids are ``mia_pop.<score>.auc``,
``.balanced_acc``, ``.tpr@1%`` and ``.tpr@.1%``. The target is the retrained model's value, not chance, and
the floor that of a second retrained model. Such an attack is weak: that it fails shows little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gen_unlearn.metrics.auc import Interval
from gen_unlearn.metrics.estimate import Estimate, proportion
from gen_unlearn.metrics.membership import membership_result
from gen_unlearn.repro import keyed_order, numpy_generator

_ONE_PERCENT, _ONE_PER_MILLE = 0.01, 0.001


@dataclass(frozen=True)
class PopulationAttack:
    """Hold how well a score tells forgotten images from held-out ones of their classes.

    Attributes:
        auc: probability that a forgotten image scores higher than a held-out one of its class.
        auc_interval: of `auc`, 95 %.
        balanced_accuracy: mean of the shares of forgotten and of held-out images told right, with a threshold
            from the other half of both; the share of the held-out images is weighted to the classes of the
            forgotten ones. `None` if a half has none of them.
        tpr_1_percent: share of the forgotten images that score above the threshold that at most 1 % of the
            held-out images pass, after the median of the held-out images of its class was taken off. `None`
            with fewer than 100 held-out images, among which 1 % cannot be told.
        tpr_1_percent_interval: of it, 95 %.
        tpr_1_per_mille: the same at 0.1 %; `None` with fewer than 1000 held-out images.
        tpr_1_per_mille_interval: of it, 95 %.
        forgotten: forgotten images that were compared.
        heldout: held-out images that they were compared with.
        left_out: forgotten images of classes without held-out ones, which were not compared.
    """

    auc: Estimate
    auc_interval: Interval
    balanced_accuracy: Estimate | None
    tpr_1_percent: Estimate | None
    tpr_1_percent_interval: Interval | None
    tpr_1_per_mille: Estimate | None
    tpr_1_per_mille_interval: Interval | None
    forgotten: int
    heldout: int
    left_out: int

    def named(self, score: str) -> dict[str, Estimate | None]:
        """Return the estimates by id, ``mia_pop.<score>.<stat>``, as shares in [0, 1]."""
        return {
            f"mia_pop.{score}.auc": self.auc,
            f"mia_pop.{score}.balanced_acc": self.balanced_accuracy,
            f"mia_pop.{score}.tpr@1%": self.tpr_1_percent,
            f"mia_pop.{score}.tpr@.1%": self.tpr_1_per_mille,
        }


@dataclass(frozen=True, eq=False)
class _Side:
    """Hold the scores, labels and half (0 or 1) of the images of one set, each ``(n,)``."""

    scores: np.ndarray
    labels: np.ndarray
    half: np.ndarray

    def of_half(self, half: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores and labels of one half."""
        return self.scores[self.half == half], self.labels[self.half == half]


def population_mia(
    forget_scores: np.ndarray,
    forget_labels: np.ndarray,
    heldout_scores: np.ndarray,
    heldout_labels: np.ndarray,
    *,
    seed: int = 0,
    forget_ids: np.ndarray | None = None,
    heldout_ids: np.ndarray | None = None,
) -> PopulationAttack:
    """Attack the forget set with one score, against held-out images of the same classes.

    The area and the true-positive rates are those of `gen_unlearn.metrics.membership.membership_result`, over
    all images: no threshold is chosen for the area, and those of the rates depend on held-out images alone;
    their intervals hold this choice. The threshold of the balanced accuracy is the best one on one half of
    each class and is used on the other; then the halves change places, so that each image counts once. The
    halves hang on ids and seed where ids are given, and otherwise on the order of rows and the seed.

    Args:
        forget_scores: scores of the forgotten images, ``(m,)``, higher for likelier members.
        forget_labels: integer class of each, ``(m,)``.
        heldout_scores: scores of images that no model was trained on, ``(n,)``; not those of the test set
            that accuracies are reported on.
        heldout_labels: integer class of each, ``(n,)``. Classes that are not forgotten do not count.
        seed: seed of the halves and of the bootstrap.
        forget_ids: ids of the forgotten images, uint8 ``(m, 16)``.
        heldout_ids: ids of the held-out images, uint8 ``(n, 16)``.

    Raises:
        ValueError: if scores, labels or ids do not match, a score is not finite, or no class has both.
    """
    rate = membership_result(
        forget_scores, forget_labels, heldout_scores, heldout_labels, seed, fpr=_ONE_PERCENT
    )
    low = None
    if rate.outsiders * _ONE_PER_MILLE >= 1:
        low = membership_result(
            forget_scores, forget_labels, heldout_scores, heldout_labels, seed, fpr=_ONE_PER_MILLE
        )
    resolved = rate.outsiders * _ONE_PERCENT >= 1
    forget_half = calibration_halves(forget_labels, seed, "forget", forget_ids)
    heldout_half = calibration_halves(heldout_labels, seed, "heldout", heldout_ids)
    return PopulationAttack(
        auc=rate.auc,
        auc_interval=rate.auc_interval,
        balanced_accuracy=_balanced_accuracy(
            _Side(forget_scores.astype(np.float64), forget_labels, forget_half),
            _Side(heldout_scores.astype(np.float64), heldout_labels, heldout_half),
        ),
        tpr_1_percent=rate.tpr if resolved else None,
        tpr_1_percent_interval=rate.tpr_interval if resolved else None,
        tpr_1_per_mille=low.tpr if low else None,
        tpr_1_per_mille_interval=low.tpr_interval if low else None,
        forgotten=rate.members,
        heldout=rate.outsiders,
        left_out=rate.left_out,
    )


def calibration_halves(labels: np.ndarray, seed: int, role: str, ids: np.ndarray | None = None) -> np.ndarray:
    """Split images into two halves, class by class, by a hash.

    The odd image of a class goes to the half ``label % 2``.

    Args:
        labels: integer class of each image, ``(n,)``.
        seed: seed of the split.
        role: name of the set; sets of different names are split independently.
        ids: ids of the images, uint8 ``(n, 16)``: the half of an image then ignores the order of the rows.

    Returns:
        int64 of shape ``(n,)``, 0 or 1.

    Raises:
        ValueError: if there is not one id per label.
    """
    if ids is None:
        order = numpy_generator("population attack", role, seed).permutation(len(labels))
    elif ids.shape == (len(labels), 16):
        order = keyed_order(ids, "population attack", role, seed)
    else:
        raise ValueError(
            f"expected one id of 16 bytes per image, got {ids.shape} for {len(labels)}; pass those of the set"
        )
    half = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        half[rows[(len(rows) + 1 - int(label) % 2) // 2 :]] = 1
    return half


def best_threshold(members: np.ndarray, outsiders: np.ndarray, outsider_weights: np.ndarray) -> float:
    """Return the threshold with the best balanced accuracy, "member" being a score above it.

    Candidates lie midway between neighbouring scores, and beyond both ends; of equally good ones the lowest.

    Args:
        members: scores, float64 ``(m,)``, m >= 1.
        outsiders: scores, float64 ``(n,)``, n >= 1.
        outsider_weights: weight of each outsider, >= 0, not all 0, ``(n,)``.
    """
    values = np.unique(np.concatenate([members, outsiders]))
    middles = values[:-1] + (values[1:] - values[:-1]) / 2
    candidates = np.concatenate([[-np.inf], middles, [np.inf]])
    caught = 1 - np.searchsorted(np.sort(members), candidates, "right") / len(members)
    order = np.argsort(outsiders, kind="stable")
    passed = np.concatenate([[0.0], np.cumsum(outsider_weights[order])])
    rejected = passed[np.searchsorted(outsiders[order], candidates, "right")] / passed[-1]
    return float(candidates[np.argmax(np.round(caught + rejected, 12))])


def _balanced_accuracy(forget: _Side, heldout: _Side) -> Estimate | None:
    """Return the mean of both shares told right, each half with the other's threshold, or `None`."""
    right, members = 0, 0
    rejected = np.zeros(0)
    weights = np.zeros(0)
    for half in (0, 1):
        calibration = _matched(forget.of_half(1 - half), heldout.of_half(1 - half))
        evaluated = _matched(forget.of_half(half), heldout.of_half(half))
        if calibration is None or evaluated is None:
            return None
        threshold = best_threshold(*calibration)
        own, others, own_weights = evaluated
        right, members = right + int((own > threshold).sum()), members + len(own)
        rejected = np.concatenate([rejected, others <= threshold])
        weights = np.concatenate([weights, own_weights])
    caught = proportion(right, members)
    shares = weights / weights.sum()
    spared = float(np.clip(shares @ rejected, 0, 1))
    spread = math.sqrt(float(np.square(shares) @ np.square(rejected - spared)))
    error = max(spread, 1 / (1 / float(np.square(shares).sum()) + 1))
    return Estimate((caught.value + spared) / 2, math.hypot(caught.standard_error, error) / 2)


def _matched(
    forget: tuple[np.ndarray, np.ndarray], heldout: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the scores of both in their common classes, and weights that give the held-out their shares."""
    classes = np.intersect1d(forget[1], heldout[1])
    if len(classes) == 0:
        return None
    members, outsiders = (np.isin(labels, classes) for _, labels in (forget, heldout))
    weights = np.zeros(len(heldout[0]))
    for label in classes:
        own = heldout[1] == label
        weights[own] = (forget[1] == label).sum() / own.sum()
    return forget[0][members], heldout[0][outsiders], weights[outsiders]
