"""The request to forget: a set of image ids, made from ids, classes, images, a fraction or a list file."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from gen_unlearn.decoding import decode_image, image_files
from gen_unlearn.indexed_images import check_known, class_index, first_few, unique_ids
from gen_unlearn.repro import ID_BYTES, digest_bytes, id_keys, ids_from_hex, ids_to_hex, image_id, keyed_order

_HEX_ID = re.compile(r"[0-9a-fA-F]{32}")

_NOTHING_DELETED = "nothing was deleted (images that were held out for testing are in no model)"


class Catalogue(Protocol):
    """What can be asked to forget: it knows the ids and labels of its images."""

    @property
    def ids(self) -> np.ndarray:
        """uint8 ``(images, 16)``."""

    @property
    def labels(self) -> np.ndarray:
        """int64 ``(images,)``, indices into `class_names`."""

    @property
    def class_names(self) -> Sequence[str]:
        """One name per class."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(height, width, channels)`` of every image."""

    def holds(self, ids: np.ndarray) -> np.ndarray:
        """Return which of `ids`, uint8 ``(n, 16)``, it has, as bool ``(n,)``."""


@dataclass(frozen=True, eq=False)
class ForgetSet:
    """Ids to forget, and why. Two sets are equal if their ids are.

    Attributes:
        ids: uint8 ``(n, 16)`` with n >= 1; kept sorted, distinct and read-only.
        reason: for people, such as "GDPR request 17".
    """

    ids: np.ndarray
    reason: str

    def __post_init__(self) -> None:
        ids = unique_ids(self.ids)
        if not len(ids):
            raise ValueError("expected at least one image to forget, got none; nothing was deleted")
        ids.setflags(write=False)
        object.__setattr__(self, "ids", ids)

    @classmethod
    def from_ids(cls, catalogue: Catalogue, ids: Iterable[str] | np.ndarray, reason: str) -> ForgetSet:
        """Forget the images with the given ids: hexadecimal text, or uint8 ``(n, 16)``.

        Raises:
            ValueError: no id, a malformed id, or one that is not in the data.
        """
        wanted = ids if isinstance(ids, np.ndarray) else ids_from_hex(ids)
        check_known(catalogue.holds(wanted), names=ids_to_hex(wanted), noun="ids", remedy=_NOTHING_DELETED)
        return cls(wanted, reason)

    @classmethod
    def from_classes(cls, catalogue: Catalogue, classes: Sequence[str | int], reason: str) -> ForgetSet:
        """Forget every image of the given classes, each given by name (text) or index (integer).

        Raises:
            ValueError: no class, an unknown one, or one without images.
        """
        indices = [class_index(catalogue.class_names, name) for name in classes]
        empty = [catalogue.class_names[index] for index in indices if index not in catalogue.labels]
        if empty:
            raise ValueError(
                f"{len(empty)} of {len(indices)} classes have no images in the data: {first_few(empty)}; "
                f"nothing was deleted"
            )
        return cls(catalogue.ids[np.isin(catalogue.labels, indices)], reason)

    @classmethod
    def from_images(cls, catalogue: Catalogue, images: Sequence[Path | np.ndarray], reason: str) -> ForgetSet:
        """Forget the given images, found by their pixels.

        Args:
            catalogue: the data.
            images: image files, folders (every image file below), or uint8 arrays of the data's shape. Files
                are converted by `decode_image`, as the data was.
            reason: for people.

        Raises:
            ImageDecodeError: a file that cannot be decoded.
            ValueError: no image, one that is not in the data, or an array of another shape.
        """
        names: list[str] = []
        ids: list[np.ndarray] = []
        for position, image in enumerate(images):
            if isinstance(image, np.ndarray):
                names.append(f"array {position}")
                ids.append(image_id(_require_shape(image, catalogue.image_shape)))
                continue
            files = image_files(image) if image.is_dir() else [image]
            names += [str(file) for file in files]
            ids += [image_id(_decode(file, catalogue)) for file in files]
        wanted = _stack(ids)
        check_known(catalogue.holds(wanted), names=names, noun="images", remedy=_NOTHING_DELETED)
        return cls(wanted, reason)

    @classmethod
    def from_fraction(
        cls,
        catalogue: Catalogue,
        fraction: float,
        seed: int,
        classes: Sequence[str | int] | None = None,
        reason: str = "random fraction",
    ) -> ForgetSet:
        """Forget a random ``round(fraction * n)`` of the `n` distinct images (of some classes, if given).

        The choice depends on the seed and the ids only, not on their order, and a larger fraction contains
        a smaller one.

        Raises:
            ValueError: a fraction outside (0, 1] or so small that it means no image; an unknown class.
        """
        if not 0 < fraction <= 1:
            raise ValueError(
                f"expected a fraction above 0 and at most 1, got {fraction}; nothing was deleted"
            )
        candidates = unique_ids(catalogue.ids)
        if classes is not None:
            candidates = cls.from_classes(catalogue, classes, reason).ids
        count = round(fraction * len(candidates))
        if not count:
            raise ValueError(
                f"expected at least one image to forget, got fraction {fraction} of {len(candidates)}; "
                f"nothing was deleted"
            )
        return cls(candidates[keyed_order(candidates, seed, "forget")[:count]], reason)

    @classmethod
    def from_file(cls, catalogue: Catalogue, path: Path, reason: str) -> ForgetSet:
        """Forget what a UTF-8 list names: one hexadecimal id or image file per line.

        Of a ".csv" file the first column counts; of any other, the whole line. A first line "id" or "file",
        blank lines and lines that start with "#" are ignored. File names are relative to the list's folder
        and stay inside it.

        Raises:
            ImageDecodeError: a named file that cannot be decoded.
            ValueError: an unreadable or empty list, a file that is missing or outside the list's folder, or
                an entry that is not in the data.
        """
        listed = read_list(path, [path.parent])
        entries = [str(entry) for entry in listed]
        wanted = _stack(
            [
                image_id(_decode(entry, catalogue)) if isinstance(entry, Path) else ids_from_hex([entry])[0]
                for entry in listed
            ]
        )
        check_known(catalogue.holds(wanted), names=entries, noun="entries", remedy=_NOTHING_DELETED)
        return cls(wanted, reason)

    @property
    def digest(self) -> str:
        """SHA-256 of the sorted ids; the reason does not enter."""
        return digest_bytes(self.ids.tobytes())

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """Return which rows of `ids`, uint8 ``(n, 16)``, are to be forgotten, as bool ``(n,)``."""
        return np.isin(id_keys(ids), id_keys(self.ids))

    def union(self, other: ForgetSet) -> ForgetSet:
        """Return a set with the ids of both, for both reasons."""
        reasons = dict.fromkeys((self.reason, other.reason))
        return ForgetSet(np.concatenate([self.ids, other.ids]), "; ".join(reasons))

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ForgetSet) and np.array_equal(self.ids, other.ids)

    def __hash__(self) -> int:
        return hash(self.ids.tobytes())


def _stack(ids: list[np.ndarray]) -> np.ndarray:
    return np.array(ids, dtype=np.uint8).reshape(-1, ID_BYTES)


def _decode(file: Path, catalogue: Catalogue) -> np.ndarray:
    height, width, channels = catalogue.image_shape
    return decode_image(file, size=(height, width), channels=channels)


def _require_shape(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    if image.dtype != np.uint8 or image.shape != tuple(shape):
        raise ValueError(
            f"expected uint8 images of the data's shape {tuple(shape)}, got {image.dtype} {image.shape}; "
            f"nothing was deleted"
        )
    return image


def read_list(path: Path, roots: Sequence[Path]) -> list[str | Path]:
    """Return what a list names, as `ForgetSet.from_file` describes lists: ids as text, and files.

    Args:
        path: the list.
        roots: folders that file names may be relative to; the first that has the file counts.

    Raises:
        ValueError: an unreadable list, or an entry that is neither an id nor a file inside a root.
    """
    found: list[str | Path] = []
    missing = []
    for entry in _entries(path):
        files = [_inside(root, entry) for root in roots if not _HEX_ID.fullmatch(entry)]
        existing = [file for file in files if file.is_file()]
        if existing or not files:
            found.append(existing[0] if existing else entry)
        else:
            missing.append(entry)
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(found) + len(missing)} entries of {path} are neither ids nor files: "
            f"{first_few(missing)}; nothing was deleted"
        )
    return found


def _entries(path: Path) -> list[str]:
    """Return the entries of a list file, without header, comments and blank lines."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if path.suffix.lower() == ".csv":
            lines = [row[0].strip() for row in csv.reader(lines)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"expected a list in UTF-8 text, got {path}: {error}; nothing was deleted"
        ) from error
    return lines[1:] if lines and lines[0].lower() in ("id", "file") else lines


def _inside(folder: Path, entry: str) -> Path:
    """Resolve a file name of a list, and refuse one that leads out of the list's folder."""
    try:
        file = (folder / entry).resolve()
    except (OSError, ValueError) as error:
        raise ValueError(f"expected a file name, got {entry!r}: {error}; nothing was deleted") from error
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"expected files inside {folder}, got {entry!r} in the list; nothing was deleted")
    return file
