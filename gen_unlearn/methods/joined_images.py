"""Two sets of images as one, for batches that mix them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.lazy_images import ImageArray


@dataclass(frozen=True, eq=False)
class _Joined:
    """Images of two arrays of the same shape, read only when they are asked for."""

    first: ImageArray
    second: ImageArray

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.first.shape[0] + self.second.shape[0], *self.first.shape[1:])

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        rows = np.arange(self.shape[0])[rows]
        found = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        split = self.first.shape[0]
        early = rows < split
        if early.any():
            found[early] = self.first[rows[early]]
        if not early.all():
            found[~early] = self.second[rows[~early] - split]
        return found


def join(first: IndexedImages, second: IndexedImages) -> IndexedImages:
    """Return the images of `first`, then those of `second`; nothing is copied or decoded.

    Raises:
        ValueError: other classes, or images of another shape.
    """
    if first.class_names != second.class_names or first.image_shape != second.image_shape:
        raise ValueError(
            f"expected images of shape {first.image_shape} in the classes {first.class_names}, "
            f"got {second.image_shape} and {second.class_names}; prepare both in the same way"
        )
    return IndexedImages(
        images=_Joined(first.images, second.images),
        labels=np.concatenate([first.labels, second.labels]),
        ids=np.concatenate([first.ids, second.ids]),
        class_names=first.class_names,
        names=first.names + second.names,
    )
