"""Images with their labels and content ids: the type that every data set becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gen_unlearn.lazy_images import ImageArray, LazyImages
from gen_unlearn.repro import digest_arrays, id_keys, ids_to_hex

if TYPE_CHECKING:
    from gen_unlearn.forget import ForgetSet

_DECODE_BATCH = 1024


@dataclass(frozen=True, eq=False, repr=False)
class IndexedImages:
    """Images with labels and content ids.

    Byte-identical images share an id and may appear several times; they are forgotten together.

    Attributes:
        images: uint8 ``(images, height, width, channels)``, in memory or decoded on demand.
        labels: int64 ``(images,)``, indices into `class_names`.
        ids: uint8 ``(images, 16)``, from `gen_unlearn.repro.image_ids`.
        class_names: one distinct name per class, also of classes that have no image.
        names: where each image came from, for people: "cat/1.png", "digits/17", "file.parquet#12".
        skipped: the files that could not be decoded and were left out, each with its reason.
    """

    images: ImageArray
    labels: np.ndarray
    ids: np.ndarray
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape, count = self.images.shape, len(self.labels)
        if len(shape) != 4 or (isinstance(self.images, np.ndarray) and self.images.dtype != np.uint8):
            raise ValueError(f"expected uint8 images of shape (images, height, width, channels), got {shape}")
        if self.labels.dtype != np.int64 or self.labels.shape != (shape[0],):
            raise ValueError(
                f"expected int64 labels of shape ({shape[0]},), got {self.labels.dtype} {self.labels.shape}"
            )
        if len(id_keys(self.ids)) != count or len(self.names) != count:
            raise ValueError(f"expected {count} ids and names, got {len(self.ids)} and {len(self.names)}")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"expected distinct class names, got {list(self.class_names)}")
        if count and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise ValueError(
                f"expected labels from 0 to {len(self.class_names) - 1} for {len(self.class_names)} classes, "
                f"got {self.labels.min()} to {self.labels.max()}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return (
            f"IndexedImages({len(self)} images of shape {self.image_shape}, {len(self.class_names)} classes)"
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(height, width, channels)`` of every image."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted (id, label) pairs: independent of the order of the rows."""
        order = np.lexsort((self.labels, id_keys(self.ids)))
        return digest_arrays(self.ids[order], self.labels[order])

    def select(self, rows: np.ndarray) -> IndexedImages:
        """Return the rows given by integers, in that order, or by a boolean mask."""
        rows = np.arange(len(self))[rows]
        images = self.images.select(rows) if isinstance(self.images, LazyImages) else self.images[rows]
        names = tuple(self.names[row] for row in rows.tolist())
        return replace(self, images=images, labels=self.labels[rows], ids=self.ids[rows], names=names)

    def holds(self, ids: np.ndarray) -> np.ndarray:
        """Return which of `ids`, uint8 ``(n, 16)``, are in the data, as bool ``(n,)``."""
        return np.isin(id_keys(ids), id_keys(self.ids))

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Return every row, ascending, whose id is among `ids` (uint8 ``(n, 16)``).

        Raises:
            ValueError: an id that is not in the data.
        """
        check_known(self.holds(ids), names=ids_to_hex(ids), noun="ids", remedy="the source may have changed")
        return np.flatnonzero(np.isin(id_keys(self.ids), id_keys(ids)))

    def without(self, forget: ForgetSet) -> IndexedImages:
        """Return the data without any image of the forget set, in the same order.

        Raises:
            ValueError: an id of the forget set that is not in the data.
        """
        return self.select(np.delete(np.arange(len(self)), self.rows_of(forget.ids)))

    def class_index(self, name_or_index: str | int) -> int:
        """Return the index of a class given by name (text) or by index (integer); see `class_index`."""
        return class_index(self.class_names, name_or_index)

    def all_images(self) -> np.ndarray:
        """Return every image, decoded if need be, as one uint8 array ``(n, height, width, channels)``."""
        if isinstance(self.images, np.ndarray):
            return self.images
        images = np.empty(self.images.shape, dtype=np.uint8)
        starts = range(0, len(self), _DECODE_BATCH)
        for start in starts:
            rows = np.arange(start, min(start + _DECODE_BATCH, len(self)))
            images[rows] = self.images[rows]
        return images


def class_index(class_names: Sequence[str], name_or_index: str | int) -> int:
    """Return the index of a class given by name (text) or index (integer, or text if no name is a number).

    Raises:
        ValueError: no such class, or an integer that is also the name of another class.
    """
    names = list(class_names)
    named = names.index(str(name_or_index)) if str(name_or_index) in names else None
    numbered = any(name.isdecimal() for name in names)
    if isinstance(name_or_index, str) and named is None and not numbered and name_or_index.isdecimal():
        return class_index(class_names, int(name_or_index))
    if isinstance(name_or_index, str):
        index = named
    elif named not in (None, name_or_index):
        raise ValueError(
            f"class {name_or_index} is ambiguous: a number is an index, but another class has that name; "
            f"give the name as text, one of {names}"
        )
    else:
        index = int(name_or_index) if 0 <= name_or_index < len(names) else None
    if index is None:
        raise ValueError(
            f"expected a class name or an index below {len(names)}, got {name_or_index!r}; "
            f"the classes are {names}"
        )
    return index


def check_known(known: np.ndarray, *, names: Sequence[str], noun: str, remedy: str) -> None:
    """Raise a ValueError that counts what is not `known`, bool ``(n,)``, and shows the first few by name."""
    missing = np.flatnonzero(~known)
    if len(missing):
        raise ValueError(
            f"{len(missing)} of {len(known)} {noun} are not in the data: "
            f"{first_few([names[row] for row in missing.tolist()])}; {remedy}"
        )


def first_few(names: Sequence[str]) -> str:
    """Join the first three names, and mark that there are more."""
    return ", ".join([*names[:3], "..."] if len(names) > 3 else names)


def unique_ids(ids: np.ndarray) -> np.ndarray:
    """Return the distinct ids, sorted, as uint8 of shape ``(n, 16)``."""
    keys = np.unique(id_keys(ids))
    return keys.view(np.uint8).reshape(-1, ids.shape[1])
