"""The images of a classification benchmark: training, held-out and test images, never the same twice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Literal

import numpy as np

from gen_unlearn.data import IndexedImages, with_classes
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.repro import ID_BYTES, digest_json, id_keys, keyed_order, numpy_generator


@dataclass(frozen=True)
class SplitConfig:
    """How many distinct images of each class go where; the shares of all classes are equal.

    Attributes:
        heldout: images that pilots and attacks see, and no model is trained on; from 1.
        test: images that are read once per final model; 0 if they come from a source of their own.
        seed: of the choice of held-out and test images, and of the wrong labels.
        wrong_labels: training images whose label is replaced by a uniformly drawn wrong one.
        duplicates: what to do with images of the training source that are also in the test source:
            ``"refuse"``, or ``"leave-out"`` of training and held-out images.
    """

    heldout: int
    test: int = 0
    seed: int = 0
    wrong_labels: int = 0
    duplicates: Literal["refuse", "leave-out"] = "refuse"

    def __post_init__(self) -> None:
        if self.heldout < 1 or self.test < 0 or self.wrong_labels < 0:
            raise ValueError(
                f"expected heldout of at least 1, test and wrong_labels of at least 0, "
                f"got {self.heldout}, {self.test} and {self.wrong_labels}"
            )
        if self.duplicates not in ("refuse", "leave-out"):
            raise ValueError(f"expected duplicates to be refuse or leave-out, got {self.duplicates!r}")


@dataclass(frozen=True, eq=False)
class Splits:
    """Training, held-out and test images without a common image, and with the same classes.

    Attributes:
        train: what originals are trained on, with the labels they see.
        heldout: images that no model is trained on, for pilots and as non-members of attacks.
        test: images for the reported accuracies; read once per final model.
        mislabelled: ids of the training images with a wrong label, sorted uint8 ``(n, 16)``.

    Raises:
        ValueError: an empty part, other classes, an image in two parts, or a mislabelled id outside `train`.
    """

    train: IndexedImages
    heldout: IndexedImages
    test: IndexedImages
    mislabelled: np.ndarray

    def __post_init__(self) -> None:
        parts = {"training": self.train, "held-out": self.heldout, "test": self.test}
        for name, part in parts.items():
            if not len(part):
                raise ValueError(f"expected {name} images, got none; change the sizes of the split")
            if part.class_names != self.train.class_names:
                raise ValueError(
                    f"expected the classes {self.train.class_names}, got {part.class_names} of {name} images"
                )
        for first, second in combinations(parts, 2):
            if shared := int(parts[first].holds(unique_ids(parts[second].ids)).sum()):
                raise ValueError(
                    f"expected {first} and {second} images to be disjoint, got {shared} byte-identical "
                    f"images in both; remove them, or set duplicates to leave-out"
                )
        if not self.train.holds(self.mislabelled).all():
            raise ValueError("expected mislabelled ids of training images, got others")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ids and labels of all parts."""
        return digest_json([self.train.digest, self.heldout.digest, self.test.digest])


def build_splits(images: IndexedImages, config: SplitConfig, test: IndexedImages | None = None) -> Splits:
    """Divide images into training, held-out and test images, each with the same share of every class.

    A hash of the seed and the id decides; byte-identical images stay together, and one with several labels
    counts for the smallest. Which images are for testing does not depend on how many are held out.

    Args:
        images: the source of training and held-out images, and of test images without a source of their own.
        config: how many.
        test: all test images, if they have a source of their own; `config.test` must then be 0.

    Raises:
        ValueError: test images both here and there, or from neither; too few images; or an image in both
            sources.
    """
    if (test is None) == (config.test == 0):
        raise ValueError(
            f"expected test images either from a source of their own or by number, got "
            f"{'no source' if test is None else 'a source'} and test {config.test}"
        )
    if test is not None:
        test = with_classes(test, images.class_names)
        if config.duplicates == "leave-out":
            images = images.select(~test.holds(images.ids))
        held = _stratified_ids(images, config.heldout, config.seed, "held out")
    else:
        tested = _stratified_ids(images, config.test, config.seed, "test")
        test, images = _take(images, tested)
        held = _stratified_ids(images, config.heldout, config.seed, "held out")
    heldout, train = _take(images, held)
    if not len(train):
        raise ValueError("expected images to train on, got none; hold out fewer")
    train, mislabelled = with_wrong_labels(train, config.wrong_labels, config.seed)
    return Splits(train, heldout, test, mislabelled)


def with_wrong_labels(data: IndexedImages, count: int, seed: int) -> tuple[IndexedImages, np.ndarray]:
    """Give `count` distinct images a label drawn uniformly from all labels but their own.

    Args:
        data: the images.
        count: from 0 to the number of distinct images.
        seed: of the choice of images, a hash of their ids, and of the labels.

    Returns:
        the data with these labels, and the sorted ids of these images, uint8 ``(count, 16)``.

    Raises:
        ValueError: more than there are distinct images, or a single class.
    """
    ids = unique_ids(data.ids)
    if not 0 <= count <= len(ids) or len(data.class_names) < 2:
        raise ValueError(
            f"expected from 0 to {len(ids)} wrong labels of at least 2 classes, got {count} of "
            f"{len(data.class_names)} classes"
        )
    if not count:
        return data, np.empty((0, ID_BYTES), dtype=np.uint8)
    chosen = unique_ids(ids[keyed_order(ids, seed, "wrong labels")[:count]])
    shift = numpy_generator(seed, "wrong labels").integers(1, len(data.class_names), count)
    rows = data.rows_of(chosen)
    place = np.searchsorted(id_keys(chosen), id_keys(data.ids[rows]))
    labels = data.labels.copy()
    labels[rows] = (_image_labels(data, chosen)[place] + shift[place]) % len(data.class_names)
    return replace(data, labels=labels), chosen


def _image_labels(data: IndexedImages, ids: np.ndarray) -> np.ndarray:
    """Return the label of each distinct image, the smallest if it has several, int64 ``(n,)``.

    Args:
        data: the images.
        ids: sorted distinct ids of the data, uint8 ``(n, 16)``.
    """
    labels = np.full(len(ids), len(data.class_names), dtype=np.int64)
    rows = data.rows_of(ids)
    np.minimum.at(labels, np.searchsorted(id_keys(ids), id_keys(data.ids[rows])), data.labels[rows])
    return labels


def _stratified_ids(data: IndexedImages, count: int, seed: int, what: str) -> np.ndarray:
    """Choose `count` distinct images, of each class its share, rounded so that the total is exact."""
    ids = unique_ids(data.ids)
    if count >= len(ids):
        raise ValueError(
            f"expected more than {count} distinct images to take {what} images from, got {len(ids)}"
        )
    labels = _image_labels(data, ids)
    exact = np.bincount(labels, minlength=len(data.class_names)) * (count / len(ids))
    quota = np.floor(exact + 1e-9).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: count - quota.sum()]] += 1
    order = keyed_order(ids, seed, what)
    order = order[np.argsort(labels[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=len(quota)))[:-1]])
    rank = np.arange(len(ids)) - starts[labels[order]]
    return ids[order[rank < quota[labels[order]]]]


def _take(data: IndexedImages, ids: np.ndarray) -> tuple[IndexedImages, IndexedImages]:
    """Return the images with these ids, and all others."""
    chosen = np.isin(id_keys(data.ids), id_keys(ids))
    return data.select(chosen), data.select(~chosen)
