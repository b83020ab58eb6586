"""Sets of images that are compared as wholes: arrays, folders and tables, read one image at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from gen_unlearn.decoding import decode_image, image_files
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.lazy_images import EncodedImages
from gen_unlearn.repro import image_id
from gen_unlearn.table_files import table_files


class ImageSet(Protocol):
    """A sequence of images that need not fit in memory; its attribute `name` is for people."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def digest(self, row: int) -> bytes:
        """Return a digest of an image, as cheaply as it can be had: of its file, if it comes from one."""
        ...

    def read(self, row: int) -> np.ndarray:
        """Return an image, uint8 ``(height, width, channels)``."""
        ...


@dataclass(frozen=True, eq=False)
class ImageArray:
    """Images in memory, uint8 ``(n, height, width, channels)``."""

    name: str
    images: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def digest(self, row: int) -> bytes:
        """Return the sample id."""
        return image_id(self.images[row]).tobytes()

    def read(self, row: int) -> np.ndarray:
        """Return an image, uint8 ``(height, width, channels)``."""
        return self.images[row]


@dataclass(frozen=True, eq=False)
class EncodedImageSet:
    """Encoded images, decoded whenever they are read.

    Attributes:
        name: what people call the set.
        sources: files, or their bytes.
        size: ``(height, width)`` to convert to as in `decode_image`; `None` leaves each image as it is.
        channels: 1 or 3 to convert to; `None` takes 1 for grey images.
    """

    name: str
    sources: EncodedImages | Sequence[Path]
    size: tuple[int, int] | None = None
    channels: int | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def digest(self, row: int) -> bytes:
        """Return the SHA-256 of the encoded image and of what it is converted to."""
        source = self.sources[row]
        encoded = source.read_bytes() if isinstance(source, Path) else source
        return hashlib.sha256(f"{self.size} {self.channels} ".encode() + encoded).digest()

    def read(self, row: int) -> np.ndarray:
        """Decode an image to uint8 ``(height, width, channels)``.

        Raises:
            ImageDecodeError: it cannot be decoded.
        """
        return decode_image(self.sources[row], size=self.size, channels=self.channels)


@dataclass(frozen=True, eq=False)
class IndexedImageSet:
    """Images of a data set, decoded whenever they are read if they are not in memory."""

    name: str
    data: IndexedImages

    def __len__(self) -> int:
        return len(self.data)

    def digest(self, row: int) -> bytes:
        """Return the sample id, without decoding the image."""
        return self.data.ids[row].tobytes()

    def read(self, row: int) -> np.ndarray:
        """Return an image, uint8 ``(height, width, channels)``.

        Raises:
            ImageDecodeError: a file disappeared or was damaged since the data was first read.
            ValueError: a file now holds other pixels.
        """
        return self.data.images[np.array([row])][0]


def open_images(
    source: Path, size: tuple[int, int] | None = None, channels: int | None = None
) -> EncodedImageSet:
    """Open all images below a folder, or those of Parquet or Arrow files, without decoding them.

    Args:
        source: a folder of images at any depth, or what `gen_unlearn.image_tables.encoded_images` takes.
        size: ``(height, width)`` to convert every image to; `None` leaves each as it is.
        channels: 1 or 3 to convert every image to; `None` takes 1 for grey images.

    Raises:
        ValueError: there is no image.
    """
    if source.is_dir() and not table_files(source):
        files = image_files(source)
        if not files:
            raise ValueError(
                f"expected images below {source}, got none; check the path and the file suffixes"
            )
        return EncodedImageSet(source.name or str(source), files, size, channels)
    from gen_unlearn.image_tables import encoded_images

    return EncodedImageSet(source.name or str(source), encoded_images(source), size, channels)


def open_distinct(
    sources: Sequence[Path], size: tuple[int, int] | None = None, channels: int | None = None
) -> list[EncodedImageSet]:
    """Open several sets as `open_images` does, each under the shortest end of its path that no other has.

    Raises:
        ValueError: there is no image in one, or two are the same.
    """
    if len(paths := {source.absolute(): source for source in sources}) < len(sources):
        raise ValueError(f"expected different sets of images, got {', '.join(map(str, sources))}")
    return [
        replace(open_images(source, size, channels), name=_distinct_name(path, paths))
        for path, source in paths.items()
    ]


def _distinct_name(path: Path, others: Iterable[Path]) -> str:
    """Return the shortest end of an absolute path that no other of some paths has, such as ``b/samples``."""
    ends = [path.parts[-depth:] for depth in range(1, len(path.parts) + 1)]
    shared = (sum(other.parts[-len(end) :] == end for other in others) for end in ends)
    return "/".join(next(end for end, count in zip(ends, shared, strict=True) if count == 1))
