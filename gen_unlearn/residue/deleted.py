"""What is known of deleted images, and telling by their ids whether images are among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gen_unlearn.repro import id_keys, image_ids

Recognise = Callable[[np.ndarray], np.ndarray]
"""Tell which of the ids, uint8 ``(m, 16)``, belong to deleted images: bool ``(m,)``."""


@dataclass(frozen=True, eq=False)
class DeletedImages:
    """What is still known of the deleted images. Each part may cover fewer images than the others.

    Attributes:
        ids: uint8 ``(n, 16)``.
        images: uint8 ``(n, height, width, channels)``; no rows where nobody has the pixels any more.
        names: file names relative to their source, such as ``cats/0017.jpg``.
        tokens: what the model's encoder makes of the images, float32 ``(n, ...)``, or `None`.
        shared_names: base names that retained images have too, which alone say nothing.
        codes: the codes of the keys that a classifier makes of the images, int16 ``(n, length)``, or `None`.
        retained_codes: those that it makes of retained images that are nearly deleted ones, as `codes`, or
            `None`; what is nearer to one of these is no residue.
        code_scale: steps per unit of the keys that the codes stand for.
        pictures: the images in another size, in which the run keeps pictures of its exemplars, uint8
            ``(n, height, width, channels)``, or `None`. Those of one colour all over are not searched for.
    """

    ids: np.ndarray
    images: np.ndarray
    names: tuple[str, ...] = ()
    tokens: np.ndarray | None = None
    shared_names: frozenset[str] = frozenset()
    codes: np.ndarray | None = None
    retained_codes: np.ndarray | None = None
    code_scale: int = 1
    pictures: np.ndarray | None = None

    def __post_init__(self) -> None:
        id_keys(self.ids)
        for pixels in (self.images,) if self.pictures is None else (self.images, self.pictures):
            if pixels.dtype != np.uint8 or pixels.ndim != 4:
                raise ValueError(
                    f"expected uint8 images of shape (n, height, width, channels), got {pixels.dtype} "
                    f"{pixels.shape}; pass an array with 0 rows if the pixels are not known"
                )
        if self.tokens is not None and (self.tokens.dtype != np.float32 or self.tokens.ndim < 2):
            raise ValueError(
                f"expected float32 tokens of shape (n, ...), got {self.tokens.dtype} {self.tokens.shape}; "
                f"pass one row for each deleted image, or None"
            )
        for codes in (self.codes, self.retained_codes):
            if codes is not None and (codes.dtype != np.int16 or codes.ndim != 2):
                raise ValueError(
                    f"expected int16 codes of shape (n, length), got {codes.dtype} {codes.shape}; "
                    f"pass one row for each image, or None"
                )

    @property
    def looks(self) -> tuple[np.ndarray, ...]:
        """The images and, if there are any, the pictures: each uint8 ``(n, height, width, channels)``."""
        return (self.images,) if self.pictures is None else (self.images, textured(self.pictures))


class KnownIds:
    """The ids of the deleted images: those that are listed, and those that are only recognised."""

    def __init__(self, ids: np.ndarray, recognise: Recognise) -> None:
        self._listed = id_keys(np.unique(ids, axis=0))
        self._recognise = recognise

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Tell which ids, uint8 ``(m, 16)``, are those of deleted images: bool ``(m,)``."""
        if not len(ids):
            return np.zeros(0, dtype=bool)
        ids = np.ascontiguousarray(ids)
        recognised = np.asarray(self._recognise(ids), dtype=bool)
        if recognised.shape != (len(ids),):
            raise ValueError(
                f"expected recognise to return {len(ids)} truth values, got shape {recognised.shape}; "
                f"return one for each id"
            )
        return recognised | self._is_listed(id_keys(ids))

    def _is_listed(self, keys: np.ndarray) -> np.ndarray:
        if not len(self._listed):
            return np.zeros(len(keys), dtype=bool)
        nearest = np.searchsorted(self._listed, keys).clip(max=len(self._listed) - 1)
        return self._listed[nearest] == keys

    def of_images(self, images: np.ndarray) -> np.ndarray:
        """Tell which images, uint8 ``(m, height, width, channels)``, are deleted ones: bool ``(m,)``."""
        return self(image_ids(images))


def is_flat(images: np.ndarray) -> np.ndarray:
    """Tell which images ``(m, height, width, channels)`` have one colour all over: bool ``(m,)``."""
    return (images == images[:, :1, :1]).all(axis=(1, 2, 3))


def textured(images: np.ndarray) -> np.ndarray:
    """Return the images ``(m, height, width, channels)`` that are not flat."""
    return images[~is_flat(images)]
