"""Recognise deleted images in pictures that were compressed with loss: JPEG, and most of WEBP."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, JpegImagePlugin

from gen_unlearn.decoding import decode_image

LARGEST_LOSS = 6.0
"""Mean absolute difference, of 255, up to which a picture may show a deleted image."""

EXPLAINED = 1.0
"""Mean absolute difference, of 255, that compressing the deleted image in the same way may leave."""

CLOSE = 0.04
"""Difference relative to the contrast of an image that two different images do not come near."""

_CELLS = 4
_CANDIDATES = 4
_WEBP_QUALITIES = (30, 50, 60, 70, 75, 80, 85, 90, 95, 100)
_FILTERS = Image.Resampling.NEAREST, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS


class LossyMatcher:
    """Compare pictures with deleted images, allowing for what compression changes.

    Two photographs can be as alike as a photograph and its compressed copy. So a picture counts only if it
    is next to a deleted image and far below that image's contrast, or if compressing the deleted image with
    the picture's own settings gives the picture.

    Args:
        images: uint8 ``(n, height, width, channels)``, none of them flat.
    """

    def __init__(self, images: np.ndarray) -> None:
        self._images = images
        self._coarse = _coarse(images)

    def find(self, picture: Image.Image, pixels: np.ndarray) -> bool:
        """Tell whether a picture shows a deleted image.

        Args:
            picture: the picture as it was opened, in its own size.
            pixels: the same, as `decode_image` fits it to the images: ``(height, width, channels)``.
        """
        distance = np.abs(self._coarse - _coarse(pixels[None])).mean(axis=1)
        nearest = np.argsort(distance)[:_CANDIDATES]
        return any(
            self._shows(picture, pixels, self._images[row])
            for row in nearest[distance[nearest] <= 2 * LARGEST_LOSS]
        )

    def _shows(self, picture: Image.Image, pixels: np.ndarray, image: np.ndarray) -> bool:
        difference = _difference(pixels, image)
        contrast = np.abs(image - image.mean(axis=(0, 1))).mean()
        if difference <= min(LARGEST_LOSS, CLOSE * contrast):
            return True
        if difference <= EXPLAINED:
            return False  # An image of so little contrast is explained by any other of its colour.
        allowed = max(EXPLAINED, difference / 2 if difference <= LARGEST_LOSS else 0)
        return any(_difference(pixels, again) <= allowed for again in _compressed(image, picture))


def is_lossy(picture: Image.Image, head: bytes) -> bool:
    """Tell from a picture and the beginning of its file whether compression changed its pixels."""
    return picture.format in ("JPEG", "MPO") or (picture.format == "WEBP" and b"VP8L" not in head)


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.int16) - other).mean())


def _coarse(images: np.ndarray) -> np.ndarray:
    """Average uint8 ``(n, height, width, channels)`` over at most 4 x 4 cells: float32 ``(n, values)``."""
    coarse = images.astype(np.float32)
    for axis in (1, 2):
        side = images.shape[axis]
        edges = np.unique(np.linspace(0, side, _CELLS, endpoint=False).astype(np.int64))
        sizes = np.diff(edges, append=side).astype(np.float32)
        sizes = sizes.reshape([-1 if number == axis else 1 for number in range(4)])
        coarse = (np.add.reduceat(coarse, edges, axis=axis) / sizes).astype(np.float32)
    return coarse.reshape(len(images), -1)


def _compressed(image: np.ndarray, like: Image.Image) -> Iterator[np.ndarray]:
    """Compress an image in the size and with the settings of a picture; the settings of WEBP are guessed."""
    height, width, channels = image.shape
    original = Image.fromarray(image[..., 0] if channels == 1 else image)
    original = original.convert("L" if like.mode == "L" else "RGB")
    for resampling in _FILTERS[:1] if like.size == original.size else _FILTERS:
        sized = original.resize(like.size, resampling)
        for encoded in _jpeg(sized, like) if like.format != "WEBP" else _webp(sized):
            yield decode_image(encoded, size=(height, width), channels=channels)


def _jpeg(image: Image.Image, like: Image.Image) -> Iterator[bytes]:
    file = io.BytesIO()
    subsampling = JpegImagePlugin.get_sampling(like)
    tables = getattr(like, "quantization", {})
    if tables and like.mode in ("L", "RGB"):
        image.save(file, "JPEG", qtables=tables, subsampling=subsampling)
        yield file.getvalue()


def _webp(image: Image.Image) -> Iterator[bytes]:
    for quality in _WEBP_QUALITIES:
        file = io.BytesIO()
        image.save(file, "WEBP", quality=quality)
        yield file.getvalue()
