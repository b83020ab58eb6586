"""Nearest neighbours in pixel space: how near generated images come to particular training images.

Distances are Euclidean over all pixel values divided by 255. The distance to the nearest generated image
shrinks as more images are generated: compare models only at equal numbers. `gen_unlearn.metrics.copy_tests`
asks the question from the other side: which generated images are copies, and of what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.features import require_images
from gen_unlearn.repro import id_keys, keyed_order

_TILE_VALUES = 2**25
"""Most pixel values per side of a tile of `nearest_images`, which take 256 MiB in float64."""

LARGEST_GALLERY = 10_000
"""Deleted images, and retained ones, that a `TrainingGallery` takes at most unless told otherwise."""


@dataclass(frozen=True)
class NearestSummary:
    """Summarise the distances from `images` images to their nearest generated image."""

    images: int
    minimum: float
    median: float
    mean: float

    @classmethod
    def of(cls, distances: np.ndarray) -> NearestSummary:
        """Summarise distances of shape ``(n,)``."""
        return cls(
            len(distances), float(distances.min()), float(np.median(distances)), float(distances.mean())
        )


@dataclass(frozen=True, eq=False)
class CopyDistances:
    """Hold, for each forgotten and each control image, its nearest generated image.

    Distances are float64 and indices into the generated images int64, of shapes ``(forgotten,)`` and
    ``(control,)``. Images are still copied if the forgotten ones lie as near as the control.
    """

    forgotten_distance: np.ndarray
    forgotten_nearest: np.ndarray
    control_distance: np.ndarray
    control_nearest: np.ndarray

    @property
    def forgotten(self) -> NearestSummary:
        """Summarise the distances of the forgotten images."""
        return NearestSummary.of(self.forgotten_distance)

    @property
    def control(self) -> NearestSummary:
        """Summarise the distances of the control images."""
        return NearestSummary.of(self.control_distance)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as a JSON-able dictionary."""
        return {
            "forgotten": vars(self.forgotten),
            "control": vars(self.control),
            "forgotten_distance": self.forgotten_distance.tolist(),
            "forgotten_nearest": self.forgotten_nearest.tolist(),
            "control_distance": self.control_distance.tolist(),
            "control_nearest": self.control_nearest.tolist(),
        }


@dataclass(frozen=True, eq=False)
class TrainingGallery:
    """Hold distinct training images, and what became of each.

    Attributes:
        images: uint8 ``(m, height, width, channels)``, no two with equal pixels; deleted ones come first.
        deleted: which were deleted, bool ``(m,)``.
        control: the retained ones to compare with, bool ``(m,)``: as many as were deleted, if so many remain.
        unmatched: deleted images that have no control image of their class; all after a whole class went.
        distinct: number of the distinct training images that these were chosen from.
    """

    images: np.ndarray
    deleted: np.ndarray
    control: np.ndarray
    unmatched: int
    distinct: int

    @classmethod
    def of(
        cls,
        deleted: IndexedImages,
        retained: IndexedImages,
        *parts: int | str | bytes,
        largest: int = LARGEST_GALLERY,
    ) -> TrainingGallery:
        """Collect distinct images of both, and choose the control, by a hash keyed with `parts`.

        Byte-identical images, told by their ids, are one image: the nearest two neighbours of a copy are
        then never the same image twice. Pixels that are both deleted and retained count as deleted. Of each
        kind at most `largest` are taken, and decoded; the control is always among them.
        """
        _, first = np.unique(id_keys(np.concatenate([deleted.ids, retained.ids])), return_index=True)
        own = np.sort(first[first < len(deleted)])
        kept = np.sort(first[first >= len(deleted)]) - len(deleted)
        distinct = len(own) + len(kept)
        own = own[np.sort(keyed_order(deleted.ids[own], *parts)[:largest])]
        labels, labels_kept = deleted.labels[own], retained.labels[kept]
        control = class_matched_control(labels, retained.ids[kept], labels_kept, *parts)
        classes = max(labels.max(initial=0), labels_kept.max(initial=0)) + 1
        lacking = np.bincount(labels, minlength=classes) - np.bincount(
            labels_kept[control], minlength=classes
        )
        order = keyed_order(retained.ids[kept], *parts)
        chosen = np.sort(np.concatenate([control, order[~np.isin(order, control)]])[:largest])
        others = retained.select(kept[chosen])
        return cls(
            np.concatenate([deleted.select(own).all_images(), others.all_images()]),
            np.arange(len(own) + len(others)) < len(own),
            np.concatenate([np.zeros(len(own), dtype=bool), np.isin(chosen, control)]),
            int(lacking.clip(min=0).sum()),
            distinct,
        )


def nearest_images(
    queries: np.ndarray, gallery: np.ndarray, k: int = 1, chunk: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` nearest gallery images of each query, exactly.

    Squared distances between uint8 images are integers below 2^53, so that float64 matrix products give
    them without rounding in whatever order they add: identical images have distance exactly 0, and equal
    distances go to the lowest index. Works in tiles of `chunk` x `chunk` images, of fewer if these have more
    than 2^25 values.

    Args:
        queries: uint8 of shape ``(n, height, width, channels)``.
        gallery: uint8 of shape ``(m, height, width, channels)``.
        k: neighbours per query, at most m.
        chunk: most images per side of a tile; a tile takes 16 bytes per pair.

    Returns:
        Distances, float64 ``(n, k)`` in ascending order, and gallery indices, int64 ``(n, k)``.

    Raises:
        ValueError: if the images are not uint8, the image shapes differ, or k is not between 1 and m.
    """
    require_images(queries)
    require_images(gallery)
    if queries.shape[1:] != gallery.shape[1:] or not 1 <= k <= len(gallery) or chunk < 1:
        raise ValueError(
            f"expected images of one shape, 1 <= k <= {len(gallery)} gallery images and chunk >= 1, got "
            f"{queries.shape[1:]} and {gallery.shape[1:]}, k {k}, chunk {chunk}; resize, or ask for fewer"
        )
    chunk = max(1, min(chunk, _TILE_VALUES // max(1, queries[0].size)))
    keys = np.concatenate(
        [_nearest_keys(queries[i : i + chunk], gallery, k, chunk) for i in range(0, len(queries), chunk)]
    )
    squared, indices = np.divmod(keys, len(gallery))
    return np.sqrt(squared) / 255, indices


def copy_distances(generated: np.ndarray, forgotten: np.ndarray, control: np.ndarray) -> CopyDistances:
    """Find the generated image nearest to each forgotten image, and to each image of a control.

    The control is a sample of retained training images, treated like the forgotten ones and equally
    numerous where the medians and minima are to be compared; it may be empty, where nothing is retained. All
    are uint8 ``(n, height, width, channels)``.

    Raises:
        ValueError: if the images are not uint8, or their shapes differ.
    """
    forgotten_distance, forgotten_nearest = nearest_images(forgotten, generated)
    none = np.empty((0, 1)), np.empty((0, 1), dtype=np.int64)
    control_distance, control_nearest = nearest_images(control, generated) if len(control) else none
    return CopyDistances(
        forgotten_distance[:, 0], forgotten_nearest[:, 0], control_distance[:, 0], control_nearest[:, 0]
    )


def class_matched_control(
    labels_deleted: np.ndarray,
    ids_retained: np.ndarray,
    labels_retained: np.ndarray,
    *parts: int | str | bytes,
) -> np.ndarray:
    """Choose as many retained images as were deleted, of the same classes where there are enough of them.

    Within a class, and for deleted images whose class has too few retained ones (none after a whole class
    was deleted), the first in `gen_unlearn.repro.keyed_order` are taken: the choice depends on ids, labels
    and key, not on the order of the rows. How many are not matched is the caller's to report: the deleted
    images of each class beyond the control images of that class.

    Args:
        labels_deleted: classes of the deleted images, integers ``(d,)``.
        ids_retained: content ids, uint8 ``(r, 16)``.
        labels_retained: classes of the retained images, integers ``(r,)``.
        parts: key of the choice.

    Returns:
        Distinct rows into the retained images, int64 ``(min(d, r),)``.

    Raises:
        ValueError: if ids and labels of the retained images differ in number.
    """
    if labels_retained.shape != (len(ids_retained),):
        raise ValueError(
            f"expected one label per retained image, got {labels_retained.shape} labels for "
            f"{len(ids_retained)} ids; pass both from the same images"
        )
    order = keyed_order(ids_retained, *parts)
    chosen = np.zeros(len(order), dtype=bool)
    for label, wanted in zip(*np.unique(labels_deleted, return_counts=True), strict=True):
        chosen[np.flatnonzero(labels_retained[order] == label)[:wanted]] = True
    missing = len(labels_deleted) - int(chosen.sum())
    chosen[np.flatnonzero(~chosen)[:missing]] = True
    return order[chosen]


def median_estimate(values: np.ndarray) -> Estimate:
    """Estimate a median and its standard error, of floats of shape ``(n,)``.

    The error is that of Maritz and Jarrett (1978, Biometrika 65): the standard deviation of the median over
    all bootstrap samples, in closed form. The median of a bootstrap sample of odd size `n` is the *i*-th
    order statistic with probability ``I(i/n) - I((i-1)/n)``, where `I` is the regularised incomplete beta
    function with both parameters ``(n + 1) / 2``. It assumes no distribution; the error is too large, by a
    quarter, where the median lies between two humps. It covers the draw of the values, as independent: not
    what they share, such as one set of generated images.

    Raises:
        ValueError: if there are fewer than two values, or one is not finite.
    """
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(
            f"expected at least two finite values of shape (n,), got {values.dtype} of shape {values.shape}; "
            "report the median of fewer without an error"
        )
    ordered = np.sort(values.astype(np.float64))
    half = (len(ordered) + 1) / 2
    weights = np.diff(scipy.special.betainc(half, half, np.linspace(0, 1, len(ordered) + 1)))
    mean = weights @ ordered
    return Estimate(float(np.median(ordered)), float(np.sqrt(weights @ np.square(ordered - mean))))


def _nearest_keys(queries: np.ndarray, gallery: np.ndarray, k: int, chunk: int) -> np.ndarray:
    """Return the `k` smallest ``squared distance * len(gallery) + index`` per query, ascending, as int64."""
    flat = queries.reshape(len(queries), -1).astype(np.float64)
    norms = np.einsum("ij,ij->i", flat, flat)[:, None]
    best = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(gallery), chunk):
        tile = gallery[start : start + chunk].reshape(-1, flat.shape[1]).astype(np.float64)
        squared = norms + np.einsum("ij,ij->i", tile, tile) - 2 * (flat @ tile.T)
        keys = squared.astype(np.int64) * len(gallery) + np.arange(start, start + len(tile))
        candidates = np.concatenate([best, keys], axis=1)
        best = np.partition(candidates, min(k, candidates.shape[1]) - 1, axis=1)[:, :k]
    return np.sort(best, axis=1)
