"""Search arrays of numbers: ids, pixels in any number type and scale, and encoded tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gen_unlearn.repro import ID_BYTES
from gen_unlearn.residue.deleted import is_flat
from gen_unlearn.residue.hits import Hit
from gen_unlearn.residue.raw import FLAT
from gen_unlearn.residue.tokens import HALF_TOLERANCE, TOLERANCE
from gen_unlearn.residue.wanted import Wanted

_ROWS_AT_ONCE = 4096
_OVERSHOOT = 0.01
_SCALES = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0))
"""Ranges that stand for 0..255 in arrays of floats."""


def search_array(array: np.ndarray, wanted: Wanted, half_precision: bool = False) -> Iterator[Hit]:
    """Search an array of any shape and type.

    Args:
        array: whole numbers are taken as pixels and as the bytes of ids; floats as pixels in [-1, 1],
            [0, 1] or [0, 255], and as tokens; both as keys; texts as texts.
        wanted: what to look for.
        half_precision: the floats were stored with 16 bits, even if they have more now.
    """
    if array.dtype.kind == "U":
        yield from search_texts(array.reshape(-1).tolist(), wanted)
    if array.dtype.kind not in "iuf" or not array.size:
        return
    yield from _search_ids(array, wanted)
    for shape in (wanted.image_shape, *wanted.picture_shapes):
        for rows in _images(array, shape):
            yield from _search_images(rows, wanted)
    half_precision = array.dtype.kind == "f" and (half_precision or array.dtype.itemsize == 2)
    found: list[int] = []
    if array.dtype.kind == "f" and wanted.tokens is not None:
        rows = rows_of_size(array, wanted.tokens.values)
        found += wanted.tokens.find(rows, HALF_TOLERANCE if half_precision else TOLERANCE)
    if array.dtype.itemsize > 1 and wanted.codes is not None:
        found += wanted.codes.find(rows_of_size(array, wanted.codes.values), half_precision)
    if found:
        yield Hit(kind="encoded tokens", unit="row", positions=tuple(found))


def search_texts(texts: list[str], wanted: Wanted) -> list[Hit]:
    """Search rows of text for ids and file names."""
    return search_joined([text.encode("utf-8", "surrogatepass") for text in texts], wanted)


def search_joined(values: list[bytes], wanted: Wanted) -> list[Hit]:
    """Search the bytes of many rows in one pass."""
    starts = np.cumsum([0] + [len(value) + 1 for value in values])[:-1]
    return wanted.raw.search(np.frombuffer(b"\n".join(values), dtype=np.uint8), starts)


def rows_of_size(array: np.ndarray, size: int) -> np.ndarray:
    """View an array as rows ``(n, size)`` if some of its trailing axes hold `size` values, else as none."""
    for axis in range(array.ndim):
        if math.prod(array.shape[axis:]) == size:
            return array.reshape(-1, size)
    return np.empty((0, size), dtype=array.dtype)


def _search_ids(array: np.ndarray, wanted: Wanted) -> Iterator[Hit]:
    if array.shape[-1:] != (ID_BYTES,) or array.dtype.kind == "f":
        return
    rows = array.reshape(-1, ID_BYTES)
    usable = np.flatnonzero(((rows >= 0) & (rows <= 255)).all(axis=1))
    found = usable[wanted.known(rows[usable].astype(np.uint8))]
    if len(found):
        yield Hit(kind="id", unit="row", positions=tuple(found.tolist()))


def _images(array: np.ndarray, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """View an array as images ``(n, height, width, channels)``, in each layout that its shape allows."""
    height, width, channels = shape
    first = channels, height, width
    rows = rows_of_size(array, math.prod(shape))
    if not len(rows):
        return
    tail = array.shape[-3:]
    if channels == 1 or tail != first or first == shape:
        yield rows.reshape(-1, *shape)
    if channels > 1 and (tail != shape or first == shape):
        yield rows.reshape(-1, *first).transpose(0, 2, 3, 1)


def _search_images(images: np.ndarray, wanted: Wanted) -> Iterator[Hit]:
    """Search rows of images for those whose pixels have the id of a deleted one."""
    found: dict[int, bool] = {}
    for start in range(0, len(images), _ROWS_AT_ONCE):
        for rows, pixels in _as_pixels(images[start : start + _ROWS_AT_ONCE]):
            known = wanted.known.of_images(pixels)
            flat = is_flat(pixels[known]).tolist()
            found.update(zip((start + rows[known]).tolist(), flat, strict=True))
    for flat, remark in ((False, ""), (True, FLAT)):
        positions = tuple(row for row, is_one in sorted(found.items()) if is_one == flat)
        if positions:
            yield Hit(kind="pixels", unit="row", positions=positions, remark=remark)


def _as_pixels(images: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows and their images as uint8, in every scale that the values of each row allow."""
    low, high = images.min(axis=(1, 2, 3)), images.max(axis=(1, 2, 3))
    if images.dtype.kind != "f":
        rows = np.flatnonzero((low >= 0) & (high <= 255))
        yield rows, images[rows].astype(np.uint8)
        return
    for least, most in _SCALES:
        margin = _OVERSHOOT * (most - least) / 2
        rows = np.flatnonzero((low >= least - margin) & (high <= most + margin))
        scaled = (images[rows].astype(np.float32) - least) * (255 / (most - least))
        yield rows, np.rint(scaled).clip(0, 255).astype(np.uint8)
