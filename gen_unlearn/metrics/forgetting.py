"""How often, and how surely, a classifier recognises the classes that were, or were not, to be forgotten."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import scipy.special

from gen_unlearn.metrics.estimate import Estimate, proportion


def confusion_counts(predicted: np.ndarray, requested: np.ndarray, num_classes: int) -> np.ndarray:
    """Count images by requested and by recognised class.

    Args:
        predicted: class recognised in each image, integers of shape ``(n,)`` in ``[0, num_classes)``.
        requested: class each image was requested as, integers of shape ``(n,)``.
        num_classes: number of classes `K`.

    Returns:
        int64 of shape ``(K, K)``, indexed ``[requested, predicted]``.

    Raises:
        ValueError: if shapes or types are wrong, or a label is out of range.
    """
    _require_labels(predicted, requested)
    labels = np.concatenate([predicted, requested])
    if (labels >= num_classes).any():
        raise ValueError(
            f"expected labels below {num_classes}, got {labels.max()}; pass the judge's number of classes"
        )
    cells = np.bincount(
        requested.astype(np.int64) * num_classes + predicted.astype(np.int64), minlength=num_classes**2
    )
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def label_accuracy(predicted: np.ndarray, requested: np.ndarray, classes: Collection[int]) -> Estimate:
    """Estimate how often an image requested as one of `classes` is recognised as the class requested.

    Labels are integers of shape ``(n,)``.

    Raises:
        ValueError: if shapes or types are wrong, or no image was requested as one of `classes`.
    """
    _require_labels(predicted, requested)
    asked = np.isin(requested, _require_classes(classes))
    if not asked.any():
        raise ValueError(
            f"expected images requested as one of {sorted(classes)}, got none of {len(requested)}; "
            "generate some, or leave the accuracy out if the model refuses these classes"
        )
    return proportion(int((predicted[asked] == requested[asked]).sum()), int(asked.sum()))


def class_share(predicted: np.ndarray, classes: Collection[int]) -> Estimate:
    """Estimate the share of images recognised as one of `classes`; labels are integers of shape ``(n,)``.

    Raises:
        ValueError: if the shape or type is wrong, or there are no images.
    """
    _require_labels(predicted)
    return proportion(int(np.isin(predicted, _require_classes(classes)).sum()), len(predicted))


def forgotten_class_rate(
    predicted: np.ndarray, requested: np.ndarray, forgotten: Collection[int], images_per_class: int
) -> Estimate:
    """Estimate how much of the forgotten classes is left in a sweep over all labels.

    The sweep asks for every label `images_per_class` times; a request that the model refuses contributes
    no image. The rate is the number of images recognised as a forgotten class, whatever was requested,
    over ``images_per_class * len(forgotten)``: 1 for a perfect generator before deletion, 0 when the
    classes never appear, and above 1 when other requests yield them too. Its standard error is that of new
    noise at the same requests, ``sum_l n_l^2 p_l (1 - p_l) / (n_l - 1)`` over labels under the root, in the
    same unit and never below that of one image in ``n + 1``; labels with a single image are taken together.
    With no image drawn the rate is 0, exactly.

    Raises:
        ValueError: if labels have wrong shapes or types, `forgotten` is empty or repeats a class, or a label
            was requested more than `images_per_class` times.
    """
    _require_labels(predicted, requested)
    classes = _require_classes(forgotten)
    counts = np.bincount(requested.astype(np.int64), minlength=1)
    if images_per_class < 1 or counts.max() > images_per_class:
        raise ValueError(
            f"expected each label requested at most images_per_class = {images_per_class} >= 1 times, got "
            f"{counts.max()} images for label {counts.argmax()}; pass the number that the sweep asked for"
        )
    if len(predicted) == 0:
        return Estimate(0.0, 0.0)
    caught = np.bincount(requested.astype(np.int64), np.isin(predicted, classes))
    single = counts == 1
    groups = [
        (counts[single].sum(), caught[single].sum()),
        *zip(counts[~single], caught[~single], strict=True),
    ]
    variance = sum(hits * (drawn - hits) / (drawn - 1) for drawn, hits in groups if drawn > 1)
    error = max(math.sqrt(variance), len(predicted) / (len(predicted) + 1))
    return Estimate(float(caught.sum()), error).scaled(1 / (images_per_class * len(classes)))


def unlearning_accuracy(predicted: np.ndarray, forgotten: Collection[int]) -> Estimate:
    """Estimate how often images asked for under forgotten classes are not recognised as one of them.

    This is UA, one minus the accuracy of a fixed classifier (Fan et al. 2024, SalUn, in ``[0, 1]``). An image
    asked for as one forgotten class and recognised as another one is not unlearned, so with several
    classes it is at most one minus the accuracy. Noise scores 1 as well: read it with the quality of
    these images, and against the oracle's value, which is below 1.

    Args:
        predicted: class recognised in each image asked for under a forgotten class, integers ``(n,)``.
        forgotten: the forgotten classes.

    Raises:
        ValueError: if the shape or type is wrong, or there are no images: a model that refuses the
            classes has no unlearning accuracy.
    """
    share = class_share(predicted, forgotten)
    return Estimate(1 - share.value, share.standard_error)


def class_probability(probabilities: np.ndarray, classes: Collection[int]) -> Estimate:
    """Estimate the mean probability that a classifier gives to `classes` together.

    Args:
        probabilities: floats of shape ``(n, K)``, one distribution over classes per image.
        classes: classes whose probabilities are added.

    Raises:
        ValueError: if a row is no distribution, there are fewer than two, or a class is not below `K`.
    """
    require_distributions(probabilities)
    chosen = _require_classes(classes)
    if chosen[-1] >= probabilities.shape[1]:
        raise ValueError(
            f"expected classes below {probabilities.shape[1]}, got {chosen[-1]}; "
            "pass the probabilities of the classifier that knows these classes"
        )
    return _mean(probabilities[:, chosen].astype(np.float64).sum(axis=1))


def prediction_entropy(probabilities: np.ndarray) -> Estimate:
    """Estimate the mean entropy ``-sum p ln p`` of a classifier's predictions, in nats.

    It is between 0, sure of every image, and ``ln K``, as on noise for a calibrated classifier.

    Args:
        probabilities: floats of shape ``(n, K)``, one distribution over classes per image.

    Raises:
        ValueError: if a row is no distribution, or there are fewer than two.
    """
    require_distributions(probabilities)
    return _mean(scipy.special.entr(probabilities.astype(np.float64)).sum(axis=1))


def _mean(values: np.ndarray) -> Estimate:
    """Estimate the mean of float64 values ``(n,)`` with the error ``sd / sqrt(n)``."""
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)))


def require_distributions(probabilities: np.ndarray) -> None:
    """Raise a ValueError unless there are two rows or more, each >= 0 with sum 1 within 1e-3."""
    if probabilities.ndim != 2 or len(probabilities) < 2:
        raise ValueError(
            f"expected probabilities of shape (n, classes) with n >= 2, got {probabilities.shape}; "
            "one image has no standard error"
        )
    proper = (probabilities >= 0).all(axis=1) & (np.abs(probabilities.sum(axis=1) - 1) <= 1e-3)
    if not proper.all():
        raise ValueError(
            f"expected rows >= 0 that sum to 1, got {int((~proper).sum())} of {len(proper)} that do not; "
            "apply a softmax to logits"
        )


def _require_labels(*labels: np.ndarray) -> None:
    """Raise a ValueError unless all are arrays of non-negative integers of one shape ``(n,)``."""
    for array in labels:
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or (array < 0).any():
            raise ValueError(
                f"expected labels as non-negative integers of shape (n,), got {array.dtype} of shape "
                f"{array.shape}; pass class indices, not scores"
            )
    if len({len(array) for array in labels}) > 1:
        raise ValueError(
            f"expected one label per image, got {' and '.join(str(len(a)) for a in labels)}; "
            "pass the labels of the same images in the same order"
        )


def _require_classes(classes: Collection[int]) -> np.ndarray:
    """Return classes as a sorted array, or raise a ValueError if they are none, repeated or negative."""
    if len(classes) == 0 or len(set(classes)) != len(classes) or min(classes) < 0:
        raise ValueError(
            f"expected at least one class, each once and >= 0, got {list(classes)}; name what to measure"
        )
    return np.asarray(sorted(classes))
