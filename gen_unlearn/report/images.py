"""Sheets of equal-sized images, as files and as pictures inside a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

VISIBLE_SIDE = 64
"""Images with fewer pixels per side are enlarged in a sheet."""

LARGEST_SIDE = 128
"""Images with more pixels per side are shrunk for a page."""


@dataclass(frozen=True)
class Picture:
    """A PNG for a page: its data URI, its size in pixels, and whether its pixels should stay visible."""

    uri: str
    width: int
    height: int
    pixelated: bool


def image_sheet(images: np.ndarray, columns: int, scale: int | None = None) -> Image.Image:
    """Lay out equal-sized images row by row on a sheet that is exactly `columns` images wide.

    A gap of a sixteenth of an image separates them; it is white and transparent.

    Args:
        images: uint8 of shape ``(n, height, width, channels)``, n >= 1, grey or colour.
        columns: images per row.
        scale: every pixel becomes ``scale x scale`` pixels; without it, just enough that small images are
            visible.

    Returns:
        A picture of mode LA (grey) or RGBA (colour).

    Raises:
        ValueError: the images are not as above, or `columns` or `scale` is below 1.
    """
    _require_showable(images)
    height, width = images.shape[1:3]
    scale = -(-VISIBLE_SIDE // max(height, width)) if scale is None else scale
    if columns < 1 or scale < 1:
        raise ValueError(f"expected columns >= 1 and scale >= 1, got {columns} and {scale}")
    gap = _gap(images)
    rows = -(-len(images) // columns)
    channels = images.shape[-1]
    sheet = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels + 1), 255, dtype=np.uint8
    )
    sheet[..., -1] = 0
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width, :channels] = image
        sheet[top : top + height, left : left + width, channels] = 255
    return Image.fromarray(sheet.repeat(scale, axis=0).repeat(scale, axis=1))


def save_grid(path: Path, images: np.ndarray, columns: int) -> None:
    """Write a PNG sheet of uint8 images ``(n, height, width, channels)``, at most `columns` per row.

    Raises:
        ValueError: the images are not uint8 grey or colour images, or there are none.
    """
    image_sheet(images, min(columns, max(len(images), 1))).save(path, format="PNG", optimize=True)


def page_picture(images: np.ndarray, columns: int = 1) -> Picture:
    """Make a sheet for a page, pixel for pixel unless the images are larger than `LARGEST_SIDE`.

    Args:
        images: uint8 of shape ``(n, height, width, channels)``.
        columns: images per row.

    Raises:
        ValueError: the images are not uint8 grey or colour images, or there are none.
    """
    _require_showable(images)
    sheet = image_sheet(shrink_for_page(images), columns, scale=1)
    return embedded(sheet, pixelated=max(images.shape[1:3]) <= VISIBLE_SIDE)


def embedded(sheet: Image.Image, pixelated: bool) -> Picture:
    """Encode a drawn sheet for a page as it is; `pixelated` if its pixels should stay visible."""
    file = io.BytesIO()
    sheet.save(file, format="PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
    return Picture(uri, sheet.width, sheet.height, pixelated)


def _gap(images: np.ndarray) -> int:
    """Return the pixels between two images: a sixteenth of the shorter side, at least one."""
    return max(1, min(images.shape[1:3]) // 16)


def shrink_for_page(images: np.ndarray) -> np.ndarray:
    """Resize images whose longer side exceeds `LARGEST_SIDE` so that it does not, keeping proportions."""
    height, width = images.shape[1:3]
    factor = LARGEST_SIDE / max(height, width)
    if factor >= 1:
        return images
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = []
    for image in images:
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        pixels = np.asarray(picture.resize(size, Image.Resampling.LANCZOS))
        small.append(pixels.reshape(size[1], size[0], -1))
    return np.stack(small)


def _require_showable(images: np.ndarray) -> None:
    """Raise a ValueError unless `images` is uint8 ``(n >= 1, height, width, 1 or 3)``."""
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"expected at least one image as uint8 of shape (n, height, width, 1 or 3), got {images.dtype} "
            f"of shape {images.shape}; stack equal-sized grey or RGB images"
        )
