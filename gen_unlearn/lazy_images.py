"""Arrays of images that are decoded whenever they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from gen_unlearn.decoding import STRICT_WARNINGS, decode_image
from gen_unlearn.repro import ids_to_hex, image_ids
from gen_unlearn.threaded_batches import threaded_batches

DECODED_TOGETHER = 32
"""Images that a thread decodes one after the other."""


class ImageArray(Protocol):
    """What a NumPy array of images and `LazyImages` have in common."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(images, height, width, channels)``."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """Return the given rows as uint8 of shape ``(rows, height, width, channels)``."""


class EncodedImages(Protocol):
    """A sequence of encoded images: files, or the bytes of files."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Path | bytes: ...


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Images that are decoded again whenever they are asked for, because all of them do not fit in memory.

    Attributes:
        sources: the encoded images.
        rows: int64 ``(images,)``; image `i` is ``sources[rows[i]]``.
        ids: uint8 ``(images, 16)``; what the pixels were when the data was first read.
        size: ``(height, width)`` to decode to.
        channels: 1 or 3.
    """

    sources: EncodedImages
    rows: np.ndarray
    ids: np.ndarray
    size: tuple[int, int]
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        """``(images, height, width, channels)``."""
        return (len(self.rows), *self.size, self.channels)

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray:
        """Decode the given rows (integers or a mask) to uint8 ``(rows, height, width, channels)``.

        Raises:
            ImageDecodeError: a file disappeared or was damaged since the data was first read.
            ValueError: a file now holds other pixels than when the data was first read.
        """
        picked = self.rows[rows]
        images = np.empty((len(picked), *self.shape[1:]), dtype=np.uint8)

        def decode(places: slice) -> None:
            with STRICT_WARNINGS:
                for place in range(places.start, places.stop):
                    source = self.sources[int(picked[place])]
                    images[place] = decode_image(source, size=self.size, channels=self.channels)

        for _ in threaded_batches(len(picked), DECODED_TOGETHER, decode):
            pass
        changed = np.flatnonzero((image_ids(images) != self.ids[rows]).any(axis=1))
        if len(changed):
            raise ValueError(
                f"{len(changed)} of {len(picked)} images changed on disk since they were first read, "
                f"the first was {ids_to_hex(self.ids[rows][changed[:1]])[0]}; load the data again"
            )
        return images

    def select(self, rows: np.ndarray) -> LazyImages:
        """Return the given rows, still undecoded."""
        return replace(self, rows=self.rows[rows], ids=self.ids[rows])
