"""Interclass confusion: whether swapped labels of two classes are really forgotten, ``confusion.ic``.

Before training, some images of two classes trade their labels; these images are the forget set. A model
that forgot them confuses the two classes no more than one retrained without them. Goel et al. (arXiv
2201.06640).

Count on the swapped images, with their true labels (what was memorised), and on test images of the two
classes (what it did to the classifier). Lower is better, down to the retrained model's count; the floor is
the same comparison between two retrained models.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gen_unlearn.metrics.classifier_accuracy import require_labelled_logits
from gen_unlearn.metrics.estimate import Estimate, mean_error
from gen_unlearn.repro import keyed_order

Pair = tuple[int, int]
"""Two different classes."""


@dataclass(frozen=True)
class SwappedLabels:
    """Hold training labels of which some were swapped between two classes.

    Attributes:
        labels: labels to train on, int64 ``(n,)``.
        rows: rows whose label is swapped, ascending, int64: the forget set.
    """

    labels: np.ndarray = field(compare=False)
    rows: np.ndarray = field(compare=False)


@dataclass(frozen=True)
class ConfusionLeft:
    """Compare the confusions of two classes after unlearning with those after retraining.

    Attributes:
        confused: images of one class that the unlearned model takes for the other, ``confusion.ic``.
        retrained: those that the retrained model does.
        images: images of the two classes.
        excess: `confused` minus `retrained`, in percent of the images, with the paired error of other images;
            target 0.
    """

    confused: int
    retrained: int
    images: int
    excess: Estimate


def swap_labels(labels: np.ndarray, ids: np.ndarray, pair: Pair, per_class: int, seed: int) -> SwappedLabels:
    """Swap the labels of some images of two classes, chosen by their ids.

    Args:
        labels: true classes, integers ``(n,)``.
        ids: ids of the images, uint8 ``(n, 16)``; the choice ignores the order of rows.
        pair: the two classes.
        per_class: images of each class that get the other's label, >= 1.
        seed: seed of the choice.

    Raises:
        ValueError: if shapes do not fit, the classes are equal, or one has fewer images.
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or ids.shape != (len(labels), 16):
        raise ValueError(
            f"expected integer labels (n,) and ids (n, 16), got {labels.dtype} {labels.shape} and "
            f"{ids.shape}; pass those of the training images"
        )
    _require_pair(pair)
    fewest = min(int((labels == label).sum()) for label in pair)
    if not 1 <= per_class <= fewest:
        raise ValueError(
            f"expected 1 to {fewest} images per class, as the smaller of classes {pair} has {fewest}, got "
            f"{per_class}; swap fewer labels"
        )
    order = keyed_order(ids, "swapped labels", seed)
    swapped = labels.astype(np.int64)
    chosen = [order[labels[order] == label][:per_class] for label in pair]
    swapped[chosen[0]], swapped[chosen[1]] = pair[1], pair[0]
    return SwappedLabels(swapped, np.sort(np.concatenate(chosen)))


def confused_per_image(logits: np.ndarray, true_labels: np.ndarray, pair: Pair) -> np.ndarray:
    """Tell which images of one class of a pair are taken for the other; images of other classes are not.

    Args:
        logits: floats ``(n, classes)``.
        true_labels: labels before the swap, integers ``(n,)``.
        pair: the two classes.

    Returns:
        bool of shape ``(n,)``.

    Raises:
        ValueError: if logits and labels do not fit, or the classes are equal or no columns.
    """
    require_labelled_logits(logits, true_labels)
    _require_pair(pair)
    if max(pair) >= logits.shape[1]:
        raise ValueError(
            f"expected classes below {logits.shape[1]}, got {pair}; pass logits over all classes"
        )
    predicted = logits.argmax(axis=1)
    a, b = pair
    return ((true_labels == a) & (predicted == b)) | ((true_labels == b) & (predicted == a))


def confusion_left(
    unlearned: np.ndarray, retrained: np.ndarray, true_labels: np.ndarray, pair: Pair
) -> ConfusionLeft:
    """Count the confusions of two classes that unlearning left, and those of the retrained model.

    Args:
        unlearned: logits of the unlearned model, floats ``(n, classes)``.
        retrained: logits of the retrained model on the same images, ``(n, classes)``.
        true_labels: labels before the swap, integers ``(n,)``; images of other classes do not count.
        pair: the two classes.

    Raises:
        ValueError: as `confused_per_image` does, or if there are fewer than two images of the two classes.
    """
    own = confused_per_image(unlearned, true_labels, pair)
    other = confused_per_image(retrained, true_labels, pair)
    shown = np.isin(true_labels, pair)
    images = int(shown.sum())
    if images < 2:
        raise ValueError(
            f"expected two images or more of classes {pair}, got {images}; pass the swapped images, or test "
            "images of these classes"
        )
    difference = own[shown].astype(np.float64) - other[shown]
    error = max(mean_error(difference, None), 1 / (images + 1))
    excess = Estimate(float(difference.mean()), error).scaled(100.0)
    return ConfusionLeft(int(own.sum()), int(other.sum()), images, excess)


def _require_pair(pair: Pair) -> None:
    if len(pair) != 2 or pair[0] == pair[1] or min(pair) < 0:
        raise ValueError(
            f"expected two different classes >= 0, got {pair}; name those whose labels are swapped"
        )
