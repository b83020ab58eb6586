"""Search encoded pictures for deleted images."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image, ImageSequence

from gen_unlearn.decoding import ImageDecodeError, decode_image
from gen_unlearn.residue.deleted import is_flat
from gen_unlearn.residue.hits import Hit, Trace, Unsearched
from gen_unlearn.residue.lossy import is_lossy
from gen_unlearn.residue.raw import FLAT
from gen_unlearn.residue.tiles import Place, distinct_tiles, known_grid_tiles, reductions
from gen_unlearn.residue.wanted import Wanted

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
_SIMILAR_ASPECT = 0.1
_HEAD_BYTES = 4096
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    EOFError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises when it opens damaged files and goes through their frames."""


def search_picture(file: IO[bytes], wanted: Wanted) -> Iterator[Trace]:
    """Search a picture, and each frame of an animation or a stack of pages.

    Args:
        file: a seekable file that begins with the picture; more may follow.
        wanted: what to look for.
    """
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    try:
        with Image.open(file, formats=_FORMATS) as picture:
            lossy = is_lossy(picture, head)
            for number, frame in enumerate(ImageSequence.Iterator(picture)):
                place = f"frame {number}" if number else ""
                yield from _search_frame(frame, wanted, place, lossy)
    except _DAMAGE as error:
        yield Unsearched(reason=f"the picture cannot be decoded: {_in_one_line(error)}")


def search_picture_bytes(data: bytes, wanted: Wanted) -> Iterator[Trace]:
    """Search an encoded picture in memory."""
    return search_picture(io.BytesIO(data), wanted)


def _search_frame(frame: Image.Image, wanted: Wanted, place: str, lossy: bool) -> Iterator[Trace]:
    height, width, channels = wanted.image_shape
    try:
        fitted = decode_image(frame, size=(height, width), channels=channels)
    except ImageDecodeError as error:
        yield Unsearched(place=place, reason=f"the picture cannot be decoded: {error.reason}")
        return
    exact = list(_search_pixels(_pixels(frame, channels), fitted, wanted, place))
    yield from exact
    alike = abs(math.log(frame.width * height / (frame.height * width))) <= _SIMILAR_ASPECT
    if lossy and alike and not exact and wanted.lossy is not None and wanted.lossy.find(frame, fitted):
        yield _whole_picture(place, "compressed with loss")


def _pixels(frame: Image.Image, channels: int) -> np.ndarray:
    """Return a picture in its own size as uint8 ``(height, width, channels)``; transparency is dropped."""
    converted = frame.convert("L" if channels == 1 else "RGB")
    return np.asarray(converted).reshape(frame.height, frame.width, channels)


def _search_pixels(pixels: np.ndarray, fitted: np.ndarray, wanted: Wanted, place: str) -> Iterator[Hit]:
    """Search for tiles; without any, for a whole image, or an original that was resized to one."""
    found = _find_tiles(pixels, wanted)
    if found:
        remark = FLAT if is_flat(pixels[None])[0] else ""
        positions = tuple(_describe(*tile) for tile in found)
        yield Hit(kind="picture", place=place, unit="tile", positions=positions, remark=remark)
    elif not is_flat(fitted[None])[0] and wanted.known.of_images(fitted[None])[0]:
        yield _whole_picture(place, "cropped and resized as the data set was")
    elif pixels.shape in wanted.picture_shapes and wanted.known.of_images(pixels[None])[0]:
        yield _whole_picture(place, "in the size in which pictures of exemplars are kept")


def _find_tiles(pixels: np.ndarray, wanted: Wanted) -> list[Place]:
    """Find deleted images of known pixels anywhere, and such as are only recognised in grids."""
    size = wanted.image_shape[:2]
    found: dict[tuple[int, int], set[Place]] = {size: set()}
    for scale, reduced in reductions(pixels, size):
        found[size].update((scale, *corner) for corner in known_grid_tiles(reduced, size, wanted.known))
    for tiles in wanted.tiles:
        places = found.setdefault(tiles.size, set())
        for scale, reduced in reductions(pixels, tiles.size):
            places.update((scale, *corner) for corner in tiles.find(reduced))
    return [place for side, places in found.items() for place in distinct_tiles(places, side)]


def _whole_picture(place: str, remark: str) -> Hit:
    return Hit(kind="picture", place=place, positions=("the whole picture",), remark=remark)


def _describe(scale: int, top: int, left: int) -> str:
    if scale == 1:
        return f"at x={left} y={top}"
    return f"near x={left * scale} y={top * scale} enlarged {scale} times"


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
