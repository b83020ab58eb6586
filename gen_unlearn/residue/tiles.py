"""Find deleted images inside larger pictures: thumbnails, sheets, grids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

import numpy as np

from gen_unlearn.residue.deleted import KnownIds, is_flat
from gen_unlearn.residue.patterns import PatternGroup
from gen_unlearn.residue.windows import WindowIndex, windows_at_every_offset

LARGEST_ENLARGEMENT = 16
"""A pixel of a deleted image may have become a square of up to this many pixels in height and width."""

Place = tuple[int, int, int]
"""Enlargement, and top and left pixel of a tile before the enlargement."""


def reductions(pixels: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield every enlargement that fits, and each picture without it, contiguous ``(h', w', channels)``.

    Every n-th pixel of a picture has each pixel of an image that was enlarged n times exactly once, wherever
    in the picture the image begins.
    """
    height, width = size
    for scale in range(1, LARGEST_ENLARGEMENT + 1):
        if pixels.shape[0] >= scale * height and pixels.shape[1] >= scale * width:
            yield scale, np.ascontiguousarray(pixels[::scale, ::scale])


class TileIndex:
    """Images to look for in pictures, at any offset. Flat ones are left out: they are in every white margin.

    Args:
        patterns: the images as strings, with windows that lie within one line of pixels each.
        image_shape: ``(height, width, channels)``, with at least 4 values in a line.
    """

    def __init__(self, patterns: PatternGroup, image_shape: tuple[int, int, int]) -> None:
        self._patterns = patterns
        self._shape = image_shape
        self._line = image_shape[1] * image_shape[2]
        self._index = WindowIndex(patterns.first_words)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self._shape[:2]

    def find(self, pixels: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield top and left of every tile in contiguous uint8 ``(height, width, channels)``."""
        flat, picture_line = pixels.reshape(-1), pixels.shape[1] * self._shape[2]
        lines = flat.reshape(-1, picture_line)
        for positions, rows in self._index.find(flat):
            key_top, key_left = np.divmod(self._patterns.first[rows], self._line)
            top, left = np.divmod(positions, picture_line)
            top, left = top - key_top, left - key_left
            fits = (top >= 0) & (top + self._shape[0] <= len(lines))
            fits &= (left >= 0) & (left + self._line <= picture_line) & (left % self._shape[2] == 0)
            fits[fits] = self._second_fits(
                flat, rows[fits], top[fits] * picture_line + left[fits], picture_line
            )
            for row, y, x in zip(rows[fits].tolist(), top[fits].tolist(), left[fits].tolist(), strict=True):
                tile = lines[y : y + self._shape[0], x : x + self._line]
                if np.array_equal(tile.reshape(-1), self._patterns.rows[row]):
                    yield y, x // self._shape[2]

    def _second_fits(
        self, flat: np.ndarray, rows: np.ndarray, corner: np.ndarray, picture_line: int
    ) -> np.ndarray:
        """Compare the second window of each guess, whose top left byte is given: bool ``(n,)``."""
        down, right = np.divmod(self._patterns.second[rows], self._line)
        seen = windows_at_every_offset(flat, self._patterns.width)[corner + down * picture_line + right]
        return seen == self._patterns.second_words[rows]


def distinct_tiles(places: Iterable[Place], size: tuple[int, int]) -> list[Place]:
    """Drop what is found once more within a tile of a larger enlargement: small images survive coarser steps.

    Args:
        places: where images of one size were found, in any order.
        size: height and width of the images.
    """
    kept: list[Place] = []
    boxes = np.empty((0, 4))
    by_scale = groupby(sorted(places, reverse=True), key=itemgetter(0))
    for scale, group in by_scale:
        corners = np.array([place[1:] for place in group])
        centres = scale * (corners + np.array(size) / 2)
        inside = (np.abs(centres[:, None] - boxes[:, :2]) < boxes[:, 2:]).all(axis=2).any(axis=1)
        kept += [(scale, int(top), int(left)) for top, left in corners[~inside]]
        halves = np.broadcast_to(scale * np.array(size) / 2, centres.shape)
        boxes = np.concatenate([boxes, np.concatenate([centres, halves], axis=1)[~inside]])
    return sorted(kept)


def known_grid_tiles(pixels: np.ndarray, size: tuple[int, int], known: KnownIds) -> Iterator[tuple[int, int]]:
    """Yield top and left of the deleted images in a picture that is laid out as a grid of images.

    This needs no pixels of the deleted images, only the means to recognise their ids. The layouts: one
    image, images without a gap, as `gen_unlearn.report.images.image_sheet` sets them, and as
    `torchvision.utils.make_grid` does by default.
    """
    height, width = size
    corners = sorted(
        {
            (margin + row * (height + gap), margin + column * (width + gap))
            for gap, margin in ((0, 0), (max(1, min(size) // 16), 0), (2, 2))
            for row in range(_tiles_along(pixels.shape[0], height, gap, margin))
            for column in range(_tiles_along(pixels.shape[1], width, gap, margin))
        }
    )
    if corners:
        tiles = np.stack([pixels[top : top + height, left : left + width] for top, left in corners])
        found = known.of_images(tiles) & (~is_flat(tiles) | (len(tiles) == 1))
        yield from (corners[number] for number in np.flatnonzero(found).tolist())


def _tiles_along(extent: int, side: int, gap: int, margin: int) -> int:
    """Return how many tiles fill an extent of pixels exactly; 0 if none do."""
    tiles, rest = divmod(extent - 2 * margin + gap, side + gap)
    return tiles if rest == 0 else 0
