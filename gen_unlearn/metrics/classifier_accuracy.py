"""Accuracies of a classifier after unlearning, in percent, and their paired gaps to a retrained one.

Ids are ``acc.<set>`` for the sets of `AccuracySet`, ``optml.ua`` and ``gap.<id>``. No accuracy has a good
direction by itself: the target is what the model retrained without the forget set reaches, and the floor is
the gap between two retrained models. An accuracy is a weighted mean over images, not a mean of batch means.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gen_unlearn.metrics.estimate import Estimate

AccuracySet = Literal["forget", "retain", "heldout", "test"]
"""A set to measure on. The images of forgotten classes of the last two go to ``forget_class_<set>``."""

LabelledLogits = tuple[np.ndarray, np.ndarray]
"""Logits, floats ``(n, classes)``, and labels, integers ``(n,)``, of the same images."""

_SPLIT = ("heldout", "test")


@dataclass(frozen=True)
class PairedGap:
    """Compare one measurement of an unlearned model with that of the retrained model of the same seed.

    Attributes:
        signed: unlearned minus retrained, in the unit of the measurement.
    """

    signed: float

    @property
    def absolute(self) -> float:
        """Size of the gap, ``gap.m = |m(U_i) - m(R_i)|``; 0 is best, and nothing is below the floor."""
        return abs(self.signed)


def require_labelled_logits(logits: np.ndarray, labels: np.ndarray) -> None:
    """Check logits, finite floats ``(n, classes)``, n >= 1, against their labels, integers ``(n,)``.

    Raises:
        ValueError: if shapes or types are wrong, a logit is not finite, or a label is no column.
    """
    if logits.ndim != 2 or len(logits) == 0 or logits.shape[1] < 2 or logits.dtype.kind != "f":
        raise ValueError(
            f"expected float logits of shape (n, classes) with n >= 1 and two classes or more, got "
            f"{logits.dtype} {logits.shape}; pass the outputs of the model before the softmax"
        )
    if labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"expected {len(logits)} integer labels, got {labels.dtype} {labels.shape}; "
            "pass the class of each image"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(
            f"expected labels in [0, {logits.shape[1]}), got {labels.min()} to {labels.max()}; "
            "pass logits over all classes, forgotten ones too"
        )
    if broken := int((~np.isfinite(logits).all(axis=1)).sum()):
        raise ValueError(
            f"expected finite logits, got {broken} of {len(logits)} rows with NaN or infinity; "
            "check the weights of the model"
        )


def correct_per_image(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Tell which images are classified right; the first of equally large logits counts.

    Args:
        logits: floats ``(n, classes)``.
        labels: integers ``(n,)``.

    Returns:
        bool of shape ``(n,)``.

    Raises:
        ValueError: see `require_labelled_logits`.
    """
    require_labelled_logits(logits, labels)
    return logits.argmax(axis=1) == labels


def accuracy(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> Estimate:
    """Estimate the accuracy ``sum w_i c_i / sum w_i``, in percent, with the error of other images.

    The standard error is ``sqrt(sum w_i^2 (c_i - a)^2) / sum w_i``, for equal weights that of a proportion,
    and never below ``1 / (m + 1)`` with ``m = (sum w)^2 / sum w^2``.

    Args:
        logits: floats ``(n, classes)``.
        labels: integers ``(n,)``.
        weights: of each image, >= 0, ``(n,)``; `None` for equal ones. A copy of an image that was added to
            fill a batch has weight 0.

    Raises:
        ValueError: if logits, labels or weights do not fit, or all weights are 0.
    """
    right = correct_per_image(logits, labels).astype(np.float64)
    return _weighted_mean(right, weights).scaled(100.0)


def accuracy_difference(
    unlearned: np.ndarray, retrained: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> Estimate:
    """Estimate the accuracy of one model minus that of another on the same images, in percentage points.

    The error pairs the images, so that those on which both are right or wrong add nothing. It is that of
    other images with these two models, not of other training seeds.

    Args:
        unlearned: logits of one model, ``(n, classes)``.
        retrained: logits of the other, ``(n, classes)``.
        labels: integers ``(n,)``.
        weights: of each image, as in `accuracy`.

    Raises:
        ValueError: as `accuracy` does.
    """
    right = correct_per_image(unlearned, labels).astype(np.float64)
    difference = right - correct_per_image(retrained, labels)
    return _weighted_mean(difference, weights).scaled(100.0)


def accuracies(
    sets: Mapping[AccuracySet, LabelledLogits],
    forgotten_classes: Collection[int] = (),
    weights: Mapping[AccuracySet, np.ndarray] | None = None,
) -> dict[str, Estimate]:
    """Measure every given set: ``acc.<set>`` and, with a forget set, ``optml.ua = 100 - acc.forget``.

    If whole classes were forgotten, ``acc.test`` leaves them out and ``acc.forget_class_test`` has them
    alone; held-out images, which stand in for the test set while methods are tuned, are split alike.

    Args:
        sets: logits and labels of each set.
        forgotten_classes: classes of which all images are forgotten; none for other forget sets.
        weights: of the images of some sets, as in `accuracy`.

    Returns:
        Estimates in percent by id, those of empty splits left out.

    Raises:
        ValueError: as `accuracy` does.
    """
    found: dict[str, Estimate] = {}
    gone = list(forgotten_classes)
    for name, (logits, labels) in sets.items():
        require_labelled_logits(logits, labels)
        own = None if weights is None else weights.get(name)
        _require_weights(own, len(labels))
        forgotten = np.isin(labels, gone) if name in _SPLIT else np.zeros(len(labels), dtype=bool)
        for key, chosen in ((f"acc.{name}", ~forgotten), (f"acc.forget_class_{name}", forgotten)):
            if chosen.any():
                found[key] = accuracy(logits[chosen], labels[chosen], None if own is None else own[chosen])
    if "acc.forget" in found:
        found["optml.ua"] = optml_ua(found["acc.forget"])
    return found


def optml_ua(forget: Estimate) -> Estimate:
    """Return ``optml.ua = 100 - acc.forget``, in percent: the share of the forget set that is got wrong.

    It is the UA of the OPTML papers (Jia et al., arXiv 2304.04934); never the accuracy itself.

    Raises:
        ValueError: if the accuracy is not in [0, 100].
    """
    if not 0 <= forget.value <= 100:
        raise ValueError(
            f"expected an accuracy in [0, 100] percent, got {forget.value}; multiply shares by 100"
        )
    return Estimate(100.0 - forget.value, forget.standard_error)


def paired_gap(unlearned: float, retrained: float) -> PairedGap:
    """Compare a metric of ``U_i`` with that of the retrained ``R_i`` of the same training seed.

    The floor is `paired_gap` of two retrained models with independent seeds.

    Args:
        unlearned: value of the unlearned model.
        retrained: value of the retrained model, in the same unit.

    Raises:
        ValueError: if a value is not finite.
    """
    if not (math.isfinite(unlearned) and math.isfinite(retrained)):
        raise ValueError(
            f"expected two finite values, got {unlearned} and {retrained}; leave out what was not measured"
        )
    return PairedGap(float(unlearned) - float(retrained))


def paired_gaps(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> dict[str, PairedGap]:
    """Compare all metrics of one seed; the result has ``gap.<id>`` for every id.

    Raises:
        ValueError: if the two have different ids, or a value is not finite.
    """
    if unlearned.keys() != retrained.keys():
        raise ValueError(
            f"expected the same metrics of both models, got {sorted(unlearned.keys() ^ retrained.keys())} of "
            "one alone; measure them on the same sets"
        )
    return {f"gap.{name}": paired_gap(unlearned[name], retrained[name]) for name in unlearned}


def class_collateral(
    unlearned: np.ndarray, retrained: np.ndarray, labels: np.ndarray, forgotten_classes: Collection[int] = ()
) -> dict[int, Estimate]:
    """Estimate for each retained class how much accuracy unlearning cost beyond retraining.

    Id ``collateral.<class>``, in percentage points, unlearned minus retrained; target 0, negative is damage.
    A mean over classes hides that a method ruins one neighbour of the forgotten class.

    Args:
        unlearned: logits of the unlearned model on test images, ``(n, classes)``.
        retrained: logits of the retrained one on the same images, ``(n, classes)``.
        labels: integers ``(n,)``.
        forgotten_classes: classes to leave out.

    Returns:
        `accuracy_difference` of every other class that has images, by ascending class.

    Raises:
        ValueError: as `accuracy` does, or if no other class has images.
    """
    require_labelled_logits(unlearned, labels)
    require_labelled_logits(retrained, labels)
    kept = np.setdiff1d(labels, list(forgotten_classes))
    if len(kept) == 0:
        raise ValueError(
            f"expected images of a retained class, got only the forgotten {sorted(forgotten_classes)}; "
            "pass the whole test set"
        )
    found: dict[int, Estimate] = {}
    for label in kept:
        rows = labels == label
        found[int(label)] = accuracy_difference(unlearned[rows], retrained[rows], labels[rows])
    return found


def _weighted_mean(values: np.ndarray, weights: np.ndarray | None) -> Estimate:
    """Return the weighted mean of values ``(n,)`` with an error of at least ``1 / (m + 1)``."""
    _require_weights(weights, len(values))
    shares = np.ones(len(values)) if weights is None else weights.astype(np.float64)
    shares = shares / shares.sum()
    mean = min(max(float(shares @ values), float(values.min())), float(values.max()))
    error = math.sqrt(float(np.square(shares) @ np.square(values - mean)))
    images = 1 / float(np.square(shares).sum())
    return Estimate(mean, max(error, 1 / (images + 1)))


def _require_weights(weights: np.ndarray | None, images: int) -> None:
    if weights is None:
        return
    usable = weights.shape == (images,) and np.isfinite(weights).all() and (weights >= 0).all()
    if not usable or not weights.any():
        raise ValueError(
            f"expected {images} finite weights >= 0, not all 0, got {weights.dtype} {weights.shape}; "
            "give every image its weight"
        )
