"""Find the images that a picture is an altered copy of: re-encoded, resized, mirrored, cropped, or brighter.

Each image is reduced to a thumbnail: luma, averaged over 16 x 16 cells, minus 0.8 of its mean over 3 x 3
cells, so that fine structure counts more than a bright sky. A query is laid over the thumbnail of an image
as it is and as a crop of 97, 94 and 91 % of each side in 4 x 4 positions, each also mirrored. The similarity
is the greatest correlation of the two over the cells that the query covers. Colour, brightness and contrast
do not count. ``evaluation/near_duplicates.py`` measures what is found and what is taken for a copy wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gen_unlearn.lazy_images import ImageArray

DEFAULT_SIMILARITY = 0.9
"""Least similarity of a copy, chosen on photographs of 32 x 32 pixels.

Small drawings resemble each other more: for the handwritten digits, 0.98 is right and 0.9 far too little.
"""

_CELLS = 16
_SMOOTHED = 0.8
_SCALES = (0.97, 0.94, 0.91)
_POSITIONS = (0.0, 1 / 3, 2 / 3, 1.0)
_LEAST_STRUCTURE = 2.0
"""Standard deviation of a thumbnail, in grey levels, below which its correlations fade to 0."""

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_BATCH_IMAGES, _BATCH_VALUES = 2048, 2**24
_DECIMALS = 4
_SAMPLED = 100
_STRICTEST = 0.98


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Hold the matches, best first; equal ones by query, then by image.

    Attributes:
        queries: int64 ``(matches,)``, rows of the queries.
        images: int64 ``(matches,)``, rows of the images they match.
        similarities: float64 ``(matches,)`` in [0, 1]; 1 for identical images.
    """

    queries: np.ndarray
    images: np.ndarray
    similarities: np.ndarray

    def __len__(self) -> int:
        return len(self.queries)


def find_near_duplicates(
    queries: np.ndarray, images: ImageArray, similarity: float = DEFAULT_SIMILARITY
) -> NearDuplicates:
    """Find every image that a query is an altered copy of. No match is a result, not an error.

    Reads the images once, in batches. Takes 100 kB of memory per query. A picture without structure (all
    black) matches its identical copies only.

    Args:
        queries: uint8 ``(n, height, width, channels)``, converted as the images were (`decode_image`).
        images: uint8 ``(m, height, width, channels)``, in memory or decoded on demand.
        similarity: least similarity of a match, above 0 and at most 1.

    Raises:
        ValueError: a similarity out of range, or queries that are not uint8 of the images' shape.
    """
    if not 0 < similarity <= 1:
        raise ValueError(
            f"expected a similarity above 0 and at most 1, got {similarity}; "
            f"the default is {DEFAULT_SIMILARITY}, and a greater one matches less"
        )
    _require_queries(queries, images)
    query_rows, image_rows = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    values = [np.empty(0)]
    for start, scores in _similarities(queries, images):
        found = np.nonzero(scores >= similarity)
        query_rows.append(found[0])
        image_rows.append(found[1] + start)
        values.append(scores[found])
    matched, similarities = np.concatenate(query_rows), np.concatenate(values)
    rows = np.concatenate(image_rows)
    order = np.lexsort((rows, matched, -similarities))
    return NearDuplicates(matched[order], rows[order], similarities[order])


def nearest_candidates(queries: np.ndarray, images: ImageArray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` images most similar to each query, alike or not; see `find_near_duplicates`.

    Returns:
        Similarities, float64 ``(n, k)`` in descending order, and image rows, int64 ``(n, k)``; of equal
        similarities the lower row comes first.

    Raises:
        ValueError: a k that is not between 1 and the number of images, or queries that are not uint8 of the
            images' shape.
    """
    if not 1 <= k <= images.shape[0]:
        raise ValueError(f"expected k from 1 to {images.shape[0]} images, got {k}; ask for fewer")
    _require_queries(queries, images)
    best = np.full((len(queries), k), -1.0)
    rows = np.zeros((len(queries), k), dtype=np.int64)
    for start, scores in _similarities(queries, images):
        best = np.concatenate([best, scores], axis=1)
        added = np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)
        rows = np.concatenate([rows, added], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return best, rows


def copy_similarity(images: ImageArray) -> float:
    """Return the similarity from which a picture passes for a copy of one of `images` without being asked.

    Drawings resemble each other more than photographs do. So a copy has to be twice as near to the image as
    nine in ten of a hundred of the images are to their nearest neighbour. `DEFAULT_SIMILARITY` is the least
    that counts, and 0.98 always does.

    Args:
        images: uint8 ``(m, height, width, channels)``, in memory or decoded on demand.
    """
    count = images.shape[0]
    if count < 2:
        return DEFAULT_SIMILARITY
    chosen = np.unique(np.linspace(0, count - 1, _SAMPLED).astype(np.int64))
    similarities, _ = nearest_candidates(images[chosen], images, 2)
    usual = float(np.quantile(similarities[:, 1], 0.9))
    return min(max(DEFAULT_SIMILARITY, 1 - (1 - usual) / 2), _STRICTEST)


@dataclass(frozen=True, eq=False)
class _Placement:
    """The queries as crops at one place of an image.

    Attributes:
        covered: float32 ``(cells,)``, 1 where the queries lie and 0 elsewhere.
        patterns: float32 ``(2, n, cells)``, the queries as they are and mirrored; mean 0 and norm 1 over the
            covered cells (less without structure), and 0 elsewhere.
    """

    covered: np.ndarray
    patterns: np.ndarray

    @classmethod
    def of(cls, grey: np.ndarray, top: float, left: float, scale: float) -> _Placement:
        """Lay grey queries ``(n, height, width)`` over the given part of the unit square."""
        down, rows = _cell_weights(grey.shape[1], top, scale)
        across, columns = _cell_weights(grey.shape[2], left, scale)
        both = np.stack([grey, grey[:, :, ::-1]])
        cells = _sharpened(rows @ both @ columns.T)
        if scale < 1:  # The cells around the rim lack the neighbours that they have in the image.
            down, across, cells = down[1:-1], across[1:-1], cells[..., 1:-1, 1:-1]
        covered = np.zeros((_CELLS, _CELLS), dtype=np.float32)
        covered[np.ix_(down, across)] = 1
        patterns = np.zeros((*both.shape[:2], _CELLS, _CELLS), dtype=np.float32)
        patterns[:, :, down[:, None], across] = cells - cells.mean(axis=(2, 3), keepdims=True)
        patterns = patterns.reshape(*both.shape[:2], -1)
        norms = _norms(np.square(patterns).sum(axis=-1), covered.sum())
        return cls(covered.reshape(-1), patterns / norms[..., None])

    def correlations(self, thumbnails: np.ndarray) -> np.ndarray:
        """Return the greater correlation of both patterns with thumbnails ``(m, cells)``, ``(n, m)``."""
        count = self.covered.sum()
        energy = np.square(thumbnails) @ self.covered - np.square(thumbnails @ self.covered) / count
        scaled = (thumbnails / _norms(energy, count)[:, None]).T
        return np.maximum(self.patterns[0] @ scaled, self.patterns[1] @ scaled)


def _similarities(queries: np.ndarray, images: ImageArray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield, batch by batch, the first row and the similarities, float64 ``(n, batch)`` in [0, 1]."""
    if not len(queries):
        return
    grey = _grey(queries)
    placements = [_Placement.of(grey, 0.0, 0.0, 1.0)]
    for scale in _SCALES:
        corners = [((1 - scale) * y, (1 - scale) * x) for y in _POSITIONS for x in _POSITIONS]
        placements += [_Placement.of(grey, top, left, scale) for top, left in corners]
    plain = np.flatnonzero(_thumbnails(grey).std(axis=1) < _LEAST_STRUCTURE).tolist()
    size = max(1, min(_BATCH_IMAGES, _BATCH_VALUES // queries[0].size))
    for start in range(0, images.shape[0], size):
        batch = images[np.arange(start, min(start + size, images.shape[0]))]
        thumbnails = _thumbnails(_grey(batch))
        best = placements[0].correlations(thumbnails)
        for placement in placements[1:]:
            np.maximum(best, placement.correlations(thumbnails), out=best)
        for row in plain:
            best[row][(batch == queries[row]).all(axis=(1, 2, 3))] = 1
        yield start, np.clip(best.astype(np.float64).round(_DECIMALS), 0, 1)


def _require_queries(queries: np.ndarray, images: ImageArray) -> None:
    if queries.dtype != np.uint8 or queries.ndim != 4 or queries.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"expected queries as uint8 of shape (n, height, width, channels) with images of shape "
            f"{tuple(images.shape[1:])}, got {queries.dtype} {queries.shape}; convert them with decode_image"
        )


def _grey(images: np.ndarray) -> np.ndarray:
    """Return luma (ITU-R 601) as float32 ``(n, height, width)``."""
    values = images.astype(np.float32)
    return values[..., 0] if images.shape[-1] == 1 else values @ _LUMA


def _thumbnails(grey: np.ndarray) -> np.ndarray:
    """Reduce grey images to sharpened cells of mean 0, float32 ``(n, cells)``."""
    _, rows = _cell_weights(grey.shape[1], 0.0, 1.0)
    _, columns = _cell_weights(grey.shape[2], 0.0, 1.0)
    cells = _sharpened(rows @ grey @ columns.T).reshape(len(grey), -1)
    return cells - cells.mean(axis=1, keepdims=True)


def _cell_weights(pixels: int, start: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Average a row of pixels, laid over ``start .. start + scale`` of the unit interval, over its cells.

    Returns:
        The cells that the pixels cover wholly, int64 ``(covered,)``, and float32 ``(covered, pixels)``.
    """
    first = int(np.ceil(start * _CELLS - 1e-6))
    last = int(np.floor((start + scale) * _CELLS + 1e-6))
    edges = (np.arange(first, last + 1) / _CELLS - start) / scale * pixels
    lower, upper = edges[:-1, None], edges[1:, None]
    left = np.arange(pixels)
    weights = np.clip(np.minimum(upper, left + 1) - np.maximum(lower, left), 0, None) / (upper - lower)
    return np.arange(first, last), weights.astype(np.float32)


def _sharpened(cells: np.ndarray) -> np.ndarray:
    """Subtract 0.8 of the mean over 3 x 3 cells from float32 ``(..., rows, columns)``, edges repeated."""
    across, down = _mean_of_three(cells.shape[-1]), _mean_of_three(cells.shape[-2])
    return cells - np.float32(_SMOOTHED) * (down @ cells @ across.T)


def _mean_of_three(count: int) -> np.ndarray:
    neighbours = np.clip(np.arange(count)[:, None] + [-1, 0, 1], 0, count - 1)
    return np.eye(count, dtype=np.float32)[neighbours].mean(axis=1)


def _norms(energy: np.ndarray, count: float) -> np.ndarray:
    """Return the root of a sum of squares over `count` cells, at least that of the least structure."""
    return np.sqrt(np.maximum(energy, np.float32(count * _LEAST_STRUCTURE**2)))
