"""Copy tests: which generated images are copies of a training image, and of a deleted one.

The gallery is the whole training set, the deleted images included: without them a copy of a deleted image
would have no neighbour to be a copy of. A copy is attributed to its nearest training image. What a count
means shows beside two others: copies of a control, equally many retained images of the same classes, and
copies by a model retrained without the deleted images, which looks alike by chance only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gen_unlearn.metrics.copying import TrainingGallery, nearest_images
from gen_unlearn.metrics.estimate import Estimate, proportion


@dataclass(frozen=True, eq=False)
class TrainingNeighbours:
    """Hold, for each generated image, the training images nearest to it.

    Attributes:
        distances: to the `k` nearest distinct images, ascending, float64 ``(n, k)``; Euclidean over pixels
            in [0, 1].
        nearest: row of the nearest one in the gallery, int64 ``(n,)``.
        deleted: whether that is a deleted image, bool ``(n,)``.
        control: whether that is an image of the control, bool ``(n,)``.
    """

    distances: np.ndarray
    nearest: np.ndarray
    deleted: np.ndarray
    control: np.ndarray


@dataclass(frozen=True, eq=False)
class CopyCounts:
    """Count the generated images that a rule takes for copies, by what they are copies of.

    Attributes:
        images: generated images tested.
        of_deleted: share of them that copies a deleted image.
        of_control: share of them that copies an image of the control.
        of_retained: share of them that copies any retained image.
        deleted_copied: number of deleted images that were copied at least once.
        copies_of_deleted: the images behind `of_deleted`, bool ``(images,)``, for `paired_change`.
        copies_of_control: the images behind `of_control`, bool ``(images,)``.
    """

    images: int
    of_deleted: Estimate
    of_control: Estimate
    of_retained: Estimate
    deleted_copied: int
    copies_of_deleted: np.ndarray
    copies_of_control: np.ndarray


@dataclass(frozen=True, eq=False)
class EmbeddingCopies:
    """Hold how similar each generated image is to a deleted and to a control image, as cosines.

    Attributes:
        deleted_similarity: highest cosine to a deleted image, float64 ``(n,)`` in [-1, 1].
        deleted_nearest: which deleted image that is, int64 ``(n,)``.
        control_similarity: highest cosine to a control image, float64 ``(n,)``.
        control_nearest: which control image that is, int64 ``(n,)``.
        threshold: cosine above which an image is a copy.
    """

    deleted_similarity: np.ndarray
    deleted_nearest: np.ndarray
    control_similarity: np.ndarray
    control_nearest: np.ndarray
    threshold: float

    @property
    def of_deleted(self) -> Estimate:
        """Estimate the share of generated images that copies a deleted image."""
        return _share(self.deleted_similarity > self.threshold)

    @property
    def of_control(self) -> Estimate:
        """Estimate the share of generated images that copies a control image."""
        return _share(self.control_similarity > self.threshold)


def training_neighbours(generated: np.ndarray, gallery: TrainingGallery, k: int = 50) -> TrainingNeighbours:
    """Find the `k` nearest distinct training images of each generated image, exactly.

    At equal distance a deleted image comes before a retained one. Images are uint8
    ``(n, height, width, channels)``.

    Raises:
        ValueError: if the images are not uint8, the image shapes differ, or the gallery has fewer than `k`.
    """
    distances, indices = nearest_images(generated, gallery.images, k)
    nearest = indices[:, 0]
    return TrainingNeighbours(distances, nearest, gallery.deleted[nearest], gallery.control[nearest])


def carlini_ratio(distances: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """Compute how much nearer the nearest training image is than the nearest `k` are on average.

    The score ``|x^ - x| / (alpha mean_y |x^ - y|)`` of Carlini et al. (2023, section 5.1, arXiv
    2301.13188), where ``y`` runs over the `k` nearest training images, ``x`` itself among them: 0 for a
    pixel-exact copy, ``1 / alpha`` for an image equally far from all. The paper takes k = 50 and
    alpha = 0.5, ranks 2^20 images by the score and has people look at the lowest; it sets no threshold.

    Args:
        distances: to the `k` >= 2 nearest distinct training images, ascending, floats ``(n, k)``.
        alpha: unit of the score.

    Returns:
        float64 ``(n,)`` in ``[0, 1 / alpha]``.

    Raises:
        ValueError: if the distances are no such table, or `alpha` is not positive.
    """
    _require_neighbours(distances)
    if not alpha > 0:
        raise ValueError(f"expected alpha > 0, got {alpha}; the paper takes 0.5")
    return distances[:, 0] / (alpha * distances.mean(axis=1))


def carlini_copies(distances: np.ndarray, alpha: float = 0.5, threshold: float = 1.0) -> np.ndarray:
    """Tell which images have a `carlini_ratio` below a threshold, as bool ``(n,)``.

    The threshold is this project's choice: at 1 and alpha = 0.5 a copy is nearer to one training image than
    half the mean distance to its 50 nearest. Real held-out images pass it too: 4 of 600 test images of
    CIFAR-10 (JPEG) among 25,000 training images. So the number counts only against the control and the
    oracle.

    Raises:
        ValueError: as `carlini_ratio`.
    """
    return carlini_ratio(distances, alpha) < threshold


def yoon_copies(distances: np.ndarray) -> np.ndarray:
    """Tell which images are three times nearer to one training image than to any other, as bool ``(n,)``.

    ``NN_1 < NN_2 / 3`` (Yoon et al. 2023). A training image with a near-duplicate hides its copies from this
    rule, but not from `carlini_copies`.

    Raises:
        ValueError: if the distances are not to at least two distinct images, ascending, floats ``(n, k)``.
    """
    _require_neighbours(distances)
    return distances[:, 0] < distances[:, 1] / 3


def count_copies(neighbours: TrainingNeighbours, copied: np.ndarray) -> CopyCounts:
    """Count copies by what they are copies of.

    Args:
        neighbours: of all generated images, from `training_neighbours`.
        copied: which of them are copies by some rule, bool ``(n,)``.

    Raises:
        ValueError: if `copied` is not bool of one entry per image.
    """
    _require_flags(copied, neighbours.deleted)
    of_deleted, of_control = copied & neighbours.deleted, copied & neighbours.control
    return CopyCounts(
        len(copied),
        _share(of_deleted),
        _share(of_control),
        _share(copied & ~neighbours.deleted),
        len(np.unique(neighbours.nearest[of_deleted])),
        of_deleted,
        of_control,
    )


def paired_change(before: np.ndarray, after: np.ndarray) -> Estimate:
    """Estimate the change ``after - before`` of a share, from images that were drawn in pairs.

    Image *i* of both was sampled from the same noise, or the share is of the same real images twice. Only
    discordant pairs count, as in McNemar's test: with `b` images that lost the property and `c` that gained
    it, the change is ``(c - b) / n`` with the error ``sqrt((b + c - (c - b)^2 / n) / n^2)``, never below
    ``1 / (n + 1)``, which acts only when all pairs changed alike, as in
    `gen_unlearn.metrics.estimate.proportion`.

    Args:
        before: which images have the property before, bool ``(n,)``.
        after: the same after, in the same order.

    Raises:
        ValueError: if the arrays are not bool of one shape with at least one entry.
    """
    _require_flags(before, after)
    change = after.astype(np.float64) - before
    return Estimate(
        float(change.mean()), max(float(change.std()) / math.sqrt(len(change)), 1 / (len(change) + 1))
    )


def embedding_copies(
    generated: np.ndarray,
    deleted: np.ndarray,
    control: np.ndarray,
    threshold: float = 0.5,
    chunk: int = 2048,
) -> EmbeddingCopies:
    """Find the deleted and the control image most similar to each generated image, by cosine.

    For descriptors made to detect copies: 0.5 is what Somepalli et al. (2023) take with SSCD (Pizzi et al.
    2022); for another embedding it must be found anew. Works in tiles of `chunk` x `chunk`.

    Args:
        generated: features of generated images, floats ``(n, d)`` of any length.
        deleted: those of deleted images, ``(m, d)``.
        control: those of a control, as many retained images of the same classes where there are some.
        threshold: cosine above which an image is a copy, in [-1, 1].
        chunk: images per side of a tile.

    Raises:
        ValueError: if the dimensions differ, a set is empty, a feature is zero or not finite, or the
            threshold is no cosine.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"expected a cosine in [-1, 1] as the threshold, got {threshold}; SSCD takes 0.5")
    unit = _unit_rows(generated)
    to_deleted = _most_similar(unit, _unit_rows(deleted), chunk)
    to_control = _most_similar(unit, _unit_rows(control), chunk)
    return EmbeddingCopies(*to_deleted, *to_control, threshold)


def _most_similar(queries: np.ndarray, gallery: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest cosine of each query and the row that has it, the lowest of equals."""
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"expected features of one dimension, got {queries.shape[1]} and {gallery.shape[1]}; "
            "extract all with the same extractor"
        )
    best, nearest = np.full(len(queries), -np.inf), np.zeros(len(queries), dtype=np.int64)
    for i in range(0, len(queries), chunk):
        for j in range(0, len(gallery), chunk):
            cosines = queries[i : i + chunk] @ gallery[j : j + chunk].T
            highest = cosines.max(axis=1)
            better = highest > best[i : i + chunk]
            best[i : i + chunk][better] = highest[better]
            nearest[i : i + chunk][better] = j + cosines.argmax(axis=1)[better]
    return best.clip(-1, 1), nearest


def _unit_rows(features: np.ndarray) -> np.ndarray:
    """Return features ``(n, d)`` scaled to length 1, in float64."""
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"expected features of shape (n, d) with n >= 1, got {features.shape}")
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    if not ((lengths > 0) & np.isfinite(lengths)).all():
        raise ValueError(
            "expected finite features that are not zero, got others; check the images and the extractor"
        )
    return features / lengths


def _share(flags: np.ndarray) -> Estimate:
    return proportion(int(flags.sum()), len(flags))


def _require_neighbours(distances: np.ndarray) -> None:
    """Raise a ValueError unless distances are ``(n, k)``, k >= 2, >= 0, ascending, to distinct images."""
    if distances.ndim != 2 or distances.shape[1] < 2:
        raise ValueError(
            f"expected distances of shape (n, k) with k >= 2, got {distances.shape}; ask for more neighbours"
        )
    ascending = (distances[:, 0] >= 0).all() and (np.diff(distances, axis=1) >= 0).all()
    if not ascending or (distances[:, 1] == 0).any():  # NaN is neither
        raise ValueError(
            "expected ascending distances >= 0 to distinct images, got others, or two images at distance 0; "
            "search a TrainingGallery, which holds equal images once"
        )


def _require_flags(flags: np.ndarray, others: np.ndarray) -> None:
    if flags.dtype != bool or others.dtype != bool or flags.ndim != 1 or flags.shape != others.shape:
        raise ValueError(
            f"expected bool arrays of one shape (n,), got {flags.dtype} {flags.shape} and "
            f"{others.dtype} {others.shape}; pass one entry per generated image, in the same order"
        )
