"""Nearest neighbours in pixel space: whether generated images copy particular training images.

Distances are Euclidean over all pixel values divided by 255. The distance to the nearest generated image
shrinks as more images are generated: compare models only at equal numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gen_unlearn.metrics.estimate import Estimate, proportion
from gen_unlearn.metrics.features import require_images


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


def nearest_images(
    queries: np.ndarray, gallery: np.ndarray, k: int = 1, chunk: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` nearest gallery images of each query, exactly.

    Squared distances between uint8 images are integers below 2^53, so that float64 matrix products give
    them without rounding in whatever order they add: identical images have distance exactly 0, and equal
    distances go to the lowest index. Works in tiles of `chunk` x `chunk` images.

    Args:
        queries: uint8 of shape ``(n, height, width, channels)``.
        gallery: uint8 of shape ``(m, height, width, channels)``.
        k: neighbours per query, at most m.
        chunk: images per side of a tile; a tile takes 16 bytes per pair.

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
    keys = np.concatenate(
        [_nearest_keys(queries[i : i + chunk], gallery, k, chunk) for i in range(0, len(queries), chunk)]
    )
    squared, indices = np.divmod(keys, len(gallery))
    return np.sqrt(squared) / 255, indices


def copy_distances(generated: np.ndarray, forgotten: np.ndarray, control: np.ndarray) -> CopyDistances:
    """Find the generated image nearest to each forgotten image, and to each image of a control.

    The control is a sample of retained training images, treated like the forgotten ones and equally
    numerous where the medians and minima are to be compared. All are uint8 ``(n, height, width, channels)``.

    Raises:
        ValueError: if the images are not uint8, or their shapes differ.
    """
    forgotten_distance, forgotten_nearest = nearest_images(forgotten, generated)
    control_distance, control_nearest = nearest_images(control, generated)
    return CopyDistances(
        forgotten_distance[:, 0], forgotten_nearest[:, 0], control_distance[:, 0], control_nearest[:, 0]
    )


def share_nearest_forgotten(generated: np.ndarray, forgotten: np.ndarray, retained: np.ndarray) -> Estimate:
    """Estimate the share of generated images whose nearest training image is a forgotten one.

    The gallery is the whole training set, forgotten and retained; at equal distance the forgotten image
    counts. The floor to compare with is the share of a model retrained without the forgotten images,
    which is not 0. All are uint8 ``(n, height, width, channels)``.

    Raises:
        ValueError: if the images are not uint8, or their shapes differ.
    """
    to_forgotten, _ = nearest_images(generated, forgotten)
    to_retained, _ = nearest_images(generated, retained)
    return proportion(int((to_forgotten <= to_retained).sum()), len(generated))


def _nearest_keys(queries: np.ndarray, gallery: np.ndarray, k: int, chunk: int) -> np.ndarray:
    """Return the `k` smallest ``squared distance * len(gallery) + index`` per query, ascending, as int64."""
    flat = queries.reshape(len(queries), -1).astype(np.float64)
    norms = np.square(flat).sum(axis=1, keepdims=True)
    best = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(gallery), chunk):
        tile = gallery[start : start + chunk].reshape(-1, flat.shape[1]).astype(np.float64)
        squared = norms + np.square(tile).sum(axis=1) - 2 * flat @ tile.T
        keys = squared.astype(np.int64) * len(gallery) + np.arange(start, start + len(tile))
        candidates = np.concatenate([best, keys], axis=1)
        best = np.partition(candidates, min(k, candidates.shape[1]) - 1, axis=1)[:, :k]
    return np.sort(best, axis=1)
