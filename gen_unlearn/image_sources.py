"""Read the handwritten digits and folders of images, and index any sequence of encoded images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from gen_unlearn.decoding import ImageDecodeError, decode_image, image_files
from gen_unlearn.indexed_images import (
    IndexedImages,
    first_few,
)
from gen_unlearn.lazy_images import EncodedImages, ImageArray, LazyImages
from gen_unlearn.progress import progress_bar
from gen_unlearn.repro import ID_BYTES, image_id, image_ids

MEMORY_LIMIT = 2 * 1024**3
"""Bytes of decoded images that are kept in memory; larger data is decoded on demand."""

ALL_IMAGES = "all"
"""Name of the single class of data without labels."""

OnError = Literal["raise", "skip"]
"""What to do with an image that cannot be decoded."""


def load_digits_images(*, size: tuple[int, int] = (8, 8), channels: int = 1) -> IndexedImages:
    """Load scikit-learn's 1,797 handwritten digits, which come with the package: no download.

    Values 0..16 become ``round(value * 255 / 16)``; other sizes and channels go through `decode_image`.

    Returns:
        images ``(1797, height, width, channels)``, classes "0" to "9", names "digits/<row>".
    """
    from sklearn.datasets import load_digits  # Here, as it takes a second that few verbs need.

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    if (*size, channels) != images.shape[1:]:
        pictures = (Image.fromarray(image[..., 0]) for image in images)
        images = np.stack([decode_image(picture, size=size, channels=channels) for picture in pictures])
    return IndexedImages(
        images=images,
        labels=digits.target.astype(np.int64),
        ids=image_ids(images),
        class_names=tuple(str(digit) for digit in range(10)),
        names=tuple(f"digits/{row}" for row in range(len(images))),
    )


def load_folder(
    root: Path,
    *,
    size: tuple[int, int],
    channels: int,
    on_error: OnError = "raise",
    memory_limit: int = MEMORY_LIMIT,
) -> IndexedImages:
    """Load a folder with one sub-folder of images per class, or with images only (one class, "all").

    Classes are the sub-folders that hold images, sorted by name. Images may lie deeper. Hidden entries and
    other files are ignored.

    Args:
        root: the folder.
        size: ``(height, width)`` every image is converted to, see `decode_image`.
        channels: 1 (grey) or 3 (RGB).
        on_error: "raise" at the first image that cannot be decoded, or "skip" and record it in `skipped`.
        memory_limit: bytes of decoded images to keep in memory; beyond it they are decoded on demand.

    Raises:
        ImageDecodeError: an image that cannot be decoded.
        ValueError: no folder, no images, a link out of the folder, or images both beside and in sub-folders.
    """
    if not root.is_dir():
        raise ValueError(f"expected a folder of images, got {root}, which is no folder; check the path")
    files = image_files(root)
    if not files:
        raise ValueError(f"expected images below {root}, got none; check the path and the file suffixes")
    parts = [file.relative_to(root).parts for file in files]
    beside = [path[0] for path in parts if len(path) == 1]
    if beside and len(beside) < len(parts):
        raise ValueError(
            f"expected images either directly in {root} or in one sub-folder per class, got both "
            f"({len(beside)} directly: {first_few(beside)}); move them into a class folder"
        )
    classes, labels = np.unique([ALL_IMAGES if beside else path[0] for path in parts], return_inverse=True)
    return index_encoded(
        files,
        labels=labels.astype(np.int64),
        class_names=tuple(classes.tolist()),
        names=["/".join(path) for path in parts],
        size=size,
        channels=channels,
        on_error=on_error,
        memory_limit=memory_limit,
    )


def index_encoded(
    sources: EncodedImages,
    *,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    names: Sequence[str],
    size: tuple[int, int],
    channels: int,
    on_error: OnError,
    memory_limit: int,
) -> IndexedImages:
    """Decode every encoded image once, for its id, and keep the pixels if they fit in `memory_limit` bytes.

    Args:
        sources: encoded images, in the order of `labels` (int64) and `names`.
        labels, class_names, names: as in `IndexedImages`.
        size, channels, on_error, memory_limit: as in `load_folder`.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"expected on_error 'raise' or 'skip', got {on_error!r}")
    shape = (*size, channels)
    fits = len(names) * int(np.prod(shape)) <= memory_limit
    decoded = np.empty((len(names) if fits else 0, *shape), dtype=np.uint8)
    ids = np.empty((len(names), ID_BYTES), dtype=np.uint8)
    kept: list[int] = []
    skipped: list[str] = []
    with progress_bar(len(names), "read") as progress:
        for row, name in enumerate(names):
            progress.update()
            try:
                image = decode_image(sources[row], size=size, channels=channels)
            except ImageDecodeError as error:
                if on_error == "raise":
                    reason = f"{error.reason}; repair or remove it, or set on_error to 'skip'"
                    raise ImageDecodeError(name, reason) from error
                skipped.append(f"{name}: {error.reason}")
                continue
            ids[len(kept)] = image_id(image)
            if fits:
                decoded[len(kept)] = image
            kept.append(row)
    if not kept:
        raise ValueError(f"none of {len(names)} images can be decoded: {first_few(skipped)}")
    rows, ids = np.array(kept, dtype=np.int64), ids[: len(kept)]
    images: ImageArray = decoded[: len(kept)] if fits else LazyImages(sources, rows, ids, size, channels)
    kept_names = tuple(names[row] for row in kept)
    return IndexedImages(images, labels[rows], ids, class_names, kept_names, tuple(skipped))
