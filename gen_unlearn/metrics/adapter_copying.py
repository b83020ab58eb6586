"""Whether adapters copy the few images that each was trained on: distances to these, beside held-out images'.

An adapter of few images may learn them by heart. What it generates then lies nearer to one of them than real
images do that would be routed to it. Distances are those of `gen_unlearn.metrics.copying`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gen_unlearn.metrics.copying import nearest_images


@dataclass(frozen=True, eq=False)
class AdaptedImages:
    """Images, and the adapters that they belong to.

    Attributes:
        images: uint8 ``(n, height, width, channels)``.
        adapters: integers ``(n, k)``, the first choice first; negative where an image has fewer.
    """

    images: np.ndarray
    adapters: np.ndarray

    def __post_init__(self) -> None:
        if self.adapters.ndim != 2 or len(self.adapters) != len(self.images):
            raise ValueError(
                f"expected the adapters of {len(self.images)} images as (n, k), got {self.adapters.shape}"
            )


def own_distances(images: AdaptedImages, training: AdaptedImages) -> np.ndarray:
    """Return the distance of each image to the nearest training image of its adapters, float64 ``(n,)``.

    It is infinite where these have no training image.
    """
    found = np.full(len(images.images), np.inf)
    for adapter in np.unique(images.adapters[images.adapters >= 0]).tolist():
        rows = np.flatnonzero((images.adapters == adapter).any(axis=1))
        members = np.flatnonzero((training.adapters == adapter).any(axis=1))
        if len(members):
            nearest = nearest_images(images.images[rows], training.images[members])[0][:, 0]
            found[rows] = np.minimum(found[rows], nearest)
    return found


def median_ratios(
    distances: np.ndarray, adapters: np.ndarray, others: np.ndarray, adapters_of_others: np.ndarray
) -> np.ndarray:
    """Return the ratio of the median distances of two kinds of images, for each adapter that has both.

    Adapters where the second median is 0 or infinite, or the first infinite, are left out.

    Args:
        distances: of images of the first kind, ``(n,)``.
        adapters: the adapter of each, integers ``(n,)``.
        others: distances of images of the second kind, ``(m,)``.
        adapters_of_others: the adapter of each, integers ``(m,)``.

    Returns:
        float64 ``(adapters,)``: below 1 where images of the first kind lie nearer.
    """
    ratios = []
    for adapter in np.intersect1d(adapters, adapters_of_others).tolist():
        first = float(np.median(distances[adapters == adapter]))
        second = float(np.median(others[adapters_of_others == adapter]))
        if np.isfinite([first, second]).all() and second > 0:
            ratios.append(first / second)
    return np.array(ratios, dtype=np.float64)
