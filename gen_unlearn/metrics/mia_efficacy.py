"""The MIA-efficacy of the OPTML tables, a compatibility metric: ``optml.mia_efficacy.confidence``.

Its value depends on how well the model generalises, and the test images that it is fitted on are those that
accuracies are reported on. Judge privacy by other attacks; this one makes published tables comparable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.svm import SVC

from gen_unlearn.metrics.estimate import Estimate, proportion
from gen_unlearn.repro import keyed_order, numpy_generator


@dataclass(frozen=True)
class MiaEfficacy:
    """Hold the share of the forget set that a classifier of confidences takes for unseen images.

    Attributes:
        percent: forgotten images predicted "non-member", in percent; the error is that of other forgotten
            images with the same attack. The target is the retrained model's value.
        images_per_side: retained and test images that the attack was fitted on, each.
        training_accuracy: share of these it tells right, in percent; near 50, `percent` is arbitrary.
    """

    percent: Estimate
    images_per_side: int
    training_accuracy: float


def mia_efficacy(
    retain_confidence: np.ndarray,
    test_confidence: np.ndarray,
    forget_confidence: np.ndarray,
    *,
    seed: int = 0,
    retain_ids: np.ndarray | None = None,
) -> MiaEfficacy:
    """Compute ``optml.mia_efficacy.confidence``, ``100 TN / |D_f|`` (Jia et al., arXiv 2304.04934).

    A support vector machine with ``C = 3`` and the kernel ``exp(-|a - b|^2)`` tells as many retained training
    images as there are test images (members) from the test images by the probability of the true class.

    Args:
        retain_confidence: probability of the true class of each retained training image, ``(r,)``; with
            training transforms off.
        test_confidence: that of each test image, ``(t,)``, without forgotten classes.
        forget_confidence: that of each forgotten image, ``(f,)``.
        seed: seed of the draw of retained images; if there are fewer than test images, all are taken, and as
            many test images are drawn.
        retain_ids: ids of the retained images, uint8 ``(r, 16)``: the draw then ignores the order of rows.

    Raises:
        ValueError: if a set has fewer than two values (the forget set none), they are no probabilities, or
            there is not one id per retained image.
    """
    _require_confidences(retain_confidence, "retain", 2)
    _require_confidences(test_confidence, "test", 2)
    _require_confidences(forget_confidence, "forget", 1)
    order = _order(len(retain_confidence), seed, retain_ids)
    size = min(len(retain_confidence), len(test_confidence))
    others = np.arange(len(test_confidence))
    if size < len(others):
        others = numpy_generator("mia efficacy", "test", seed).permutation(len(others))
    members, outsiders = retain_confidence[order[:size]], test_confidence[others[:size]]
    values = np.concatenate([members, outsiders]).astype(np.float64)[:, None]
    truth = np.repeat([1, 0], [size, size])
    attack = SVC(C=3.0, kernel="rbf", gamma=1.0).fit(values, truth)
    unseen = attack.predict(forget_confidence.astype(np.float64)[:, None]) == 0
    return MiaEfficacy(
        percent=proportion(int(unseen.sum()), len(unseen)).scaled(100.0),
        images_per_side=size,
        training_accuracy=100.0 * float((attack.predict(values) == truth).mean()),
    )


def _order(images: int, seed: int, ids: np.ndarray | None) -> np.ndarray:
    """Return the retained images in the order in which they are drawn, int64 ``(images,)``."""
    if ids is None:
        return numpy_generator("mia efficacy", "retain", seed).permutation(images)
    if ids.shape != (images, 16):
        raise ValueError(
            f"expected one id of 16 bytes per retained image, got {ids.shape} for {images}; "
            "pass those of the retain set"
        )
    return keyed_order(ids, "mia efficacy", "retain", seed)


def _require_confidences(values: np.ndarray, whose: str, least: int) -> None:
    usable = values.ndim == 1 and len(values) >= least and values.dtype.kind == "f"
    if not usable or not ((values >= 0) & (values <= 1 + 1e-6)).all():
        raise ValueError(
            f"expected {whose} confidences, floats (n,) in [0, 1] with n >= {least}, got {values.dtype} "
            f"{values.shape}; pass the softmax probability of each image's true class"
        )
