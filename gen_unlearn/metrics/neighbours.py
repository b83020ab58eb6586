"""Nearest neighbours among feature vectors, and who lies inside whose ball; by Euclidean distance, in tiles.

Matrix products in float64 find the candidates; whatever is decided is decided by the distance between the
two rows themselves, which does not depend on the tile, is 0 for equal rows, and the same in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

TILE = 1024
"""Rows per side of a tile of distances, which takes 8 MiB in float64."""

_SPARE = 8
"""Candidates kept beyond the `k` nearest, so that rounding in the products cannot push one of those out."""


def require_features(*arrays: np.ndarray) -> None:
    """Raise a ValueError unless all are finite floats ``(n, d)`` of one d, with n >= 1.

    NaN or infinity in a feature would otherwise count as *far* or *outside* without a word.
    """
    for array in arrays:
        if array.ndim != 2 or len(array) == 0 or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(
                f"expected at least one feature vector as floats of shape (n, d), got {array.dtype} of shape "
                f"{array.shape}; extract the features of one image or more"
            )
        if broken := int((~np.isfinite(array)).any(axis=1).sum()):
            raise ValueError(
                f"expected finite features, got {broken} of {len(array)} rows with NaN or infinity; "
                "check the images and the weights of the extractor"
            )
    if len(dims := {array.shape[1] for array in arrays}) > 1:
        raise ValueError(
            f"expected features of one dimension, got {sorted(dims)}; extract all with the same extractor"
        )


def nearest_features(queries: np.ndarray, gallery: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` nearest gallery rows of each query, exactly.

    Equal distances go to the lowest index. Both hold as long as no more than `k` + 8 rows are that near, up
    to the rounding of products: about ``1e-15 d`` times the squared distance to the mean of the gallery.

    Args:
        queries: floats of shape ``(n, d)``.
        gallery: floats of shape ``(m, d)``.
        k: neighbours per query, at most m.

    Returns:
        Distances, float64 ``(n, k)`` in ascending order, and gallery indices, int64 ``(n, k)``.

    Raises:
        ValueError: if these are not finite features of one dimension, or k is not between 1 and m.
    """
    return _nearest(queries, gallery, k, np.full(len(queries), -1))


def nearest_others(features: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` nearest other rows of each row of floats ``(n, d)``, as `nearest_features` does.

    A row is excluded by its position and not by its distance: a duplicate of it is a neighbour at 0.

    Raises:
        ValueError: if these are not finite features, or k is not between 1 and n - 1.
    """
    return _nearest(features, features, k, np.arange(len(features)))


def ball_hits(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> Iterator[np.ndarray]:
    """Yield which points lie inside which balls, strictly, as bool ``(points, m)`` for tiles of points.

    Args:
        points: floats of shape ``(n, d)``; every tile holds the next `TILE` of them.
        centres: floats of shape ``(m, d)``.
        radii: float64 of shape ``(m,)``, such as a column of `nearest_others` at the centres. A point
            equal to the neighbour that gave a radius is at exactly that distance, and outside.

    Raises:
        ValueError: if these are not finite features of one dimension.
    """
    require_features(points, centres)
    squared_radii = np.square(radii)
    for rows in slices(len(points)):
        hits = np.empty((rows.stop - rows.start, len(centres)), dtype=bool)
        for columns in slices(len(centres)):
            squared, rounding = _squared_distances(points[rows], centres[columns])
            hits[:, columns] = squared < squared_radii[columns]
            near, at = np.nonzero(np.abs(squared - squared_radii[columns]) <= rounding)
            for some in slices(len(near)):
                i, j = near[some] + rows.start, at[some] + columns.start
                hits[near[some], j] = _distances(points[i], centres[j]) < radii[j]
        yield hits


def _nearest(
    queries: np.ndarray, gallery: np.ndarray, k: int, excluded: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` nearest gallery rows of each query, other than the row that `excluded` ``(n,)`` names."""
    require_features(queries, gallery)
    available = len(gallery) - int(excluded.max() >= 0)
    if not 1 <= k <= available:
        raise ValueError(
            f"expected k between 1 and {available}, the rows to choose from, got {k}; "
            "ask for fewer neighbours or pass more images"
        )
    distances = np.empty((len(queries), k))
    indices = np.empty((len(queries), k), dtype=np.int64)
    for rows in slices(len(queries)):
        found = _candidates(queries[rows], gallery, min(k + _SPARE, available), excluded[rows])
        found.sort(axis=1)
        exact = np.stack([_distances(queries[rows], gallery[column]) for column in found.T], axis=1)
        order = exact.argsort(axis=1, kind="stable")[:, :k]
        distances[rows] = np.take_along_axis(exact, order, axis=1)
        indices[rows] = np.take_along_axis(found, order, axis=1)
    return distances, indices


def _candidates(queries: np.ndarray, gallery: np.ndarray, count: int, excluded: np.ndarray) -> np.ndarray:
    """Return `count` gallery indices per query, int64 ``(n, count)`` in no order, that hold the nearest."""
    best = np.empty((len(queries), 0))
    indices = np.empty((len(queries), 0), dtype=np.int64)
    for columns in slices(len(gallery)):
        squared, _ = _squared_distances(queries, gallery[columns])
        own = np.flatnonzero((excluded >= columns.start) & (excluded < columns.stop))
        squared[own, excluded[own] - columns.start] = np.inf
        numbers = np.broadcast_to(np.arange(columns.start, columns.stop), squared.shape)
        best = np.concatenate([best, squared], axis=1)
        indices = np.concatenate([indices, numbers], axis=1)
        if best.shape[1] > count:
            kept = best.argpartition(count - 1, axis=1)[:, :count]
            best = np.take_along_axis(best, kept, axis=1)
            indices = np.take_along_axis(indices, kept, axis=1)
    return indices


def _squared_distances(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``|a|^2 + |b|^2 - 2 a.b`` of all pairs, and a bound of its rounding, both float64 ``(n, m)``.

    Both are centred at the mean of `b` first: the rounding is relative to the norms.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    centre = b.mean(axis=0)
    a, b = a - centre, b - centre
    norms = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    return norms - 2 * a @ b.T, norms * (4 * (a.shape[1] + 4) * np.finfo(np.float64).eps)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the distance of each row of `a` to the same row of `b`, float64 ``(n,)``, in one fixed order."""
    return np.sqrt(np.square(a.astype(np.float64) - b).sum(axis=1))


def slices(count: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `TILE` that cover ``range(count)``."""
    for start in range(0, count, TILE):
        yield slice(start, min(start + TILE, count))
