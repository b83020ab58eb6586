"""Read the handwritten digits and folders of images, and index any sequence of encoded images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from gen_unlearn.decoding import STRICT_WARNINGS, ImageDecodeError, decode_image, image_files
from gen_unlearn.indexed_images import IndexedImages, first_few
from gen_unlearn.lazy_images import DECODED_TOGETHER, EncodedImages, ImageArray, LazyImages
from gen_unlearn.progress import progress_bar
from gen_unlearn.repro import ID_BYTES, image_id, image_ids
from gen_unlearn.threaded_batches import threaded_batches

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
    parts = [file.parts[len(root.parts) :] for file in files]
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
    ids = np.empty((len(names), ID_BYTES), dtype=np.uint8)
    decoded = np.empty((len(names) if fits else 0, *shape), dtype=np.uint8)

    def decode(rows: slice) -> dict[int, ImageDecodeError]:
        failures = {}
        with STRICT_WARNINGS:
            for row in range(rows.start, rows.stop):
                try:
                    image = decode_image(sources[row], size=size, channels=channels)
                except ImageDecodeError as error:
                    failures[row] = error
                    continue
                ids[row] = image_id(image)
                if fits:
                    decoded[row] = image
        return failures

    failures = _failures_of(decode, names, on_error)
    skipped = tuple(f"{names[row]}: {error.reason}" for row, error in failures.items())
    kept = np.delete(np.arange(len(names)), list(failures))
    if not len(kept):
        raise ValueError(f"none of {len(names)} images can be decoded: {first_few(skipped)}")
    if fits and failures:
        for place, row in enumerate(kept.tolist()):
            decoded[place] = decoded[row]
    ids = ids[kept]
    images: ImageArray = decoded[: len(kept)] if fits else LazyImages(sources, kept, ids, size, channels)
    kept_names = tuple(names[row] for row in kept.tolist())
    return IndexedImages(images, labels[kept], ids, class_names, kept_names, skipped)


def _failures_of(
    decode: Callable[[slice], dict[int, ImageDecodeError]], names: Sequence[str], on_error: OnError
) -> dict[int, ImageDecodeError]:
    """Decode all rows, and return the errors of those that cannot be, or raise the first."""
    failures: dict[int, ImageDecodeError] = {}
    decoded = threaded_batches(len(names), DECODED_TOGETHER, decode)
    with progress_bar(len(names), "read") as progress, closing(decoded):  # An error ends the threads, too.
        for rows, failed in decoded:
            for row, error in failed.items():
                if on_error == "raise":
                    reason = f"{error.reason}; repair or remove it, or set on_error to 'skip'"
                    raise ImageDecodeError(names[row], reason) from error
            failures |= failed
            progress.update(rows.stop - rows.start)
    return failures
