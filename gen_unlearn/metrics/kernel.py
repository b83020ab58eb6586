"""The kernel distance between two sets of features (Bińkowski et al. 2018): unbiased at any number of images.

The squared maximum mean discrepancy (Gretton et al. 2012) under the kernel ``k(f, g) = (<f, g> / d + 1)^3``,
as a U-statistic in float64. Being unbiased, it is around 0 for equal distributions, and negative half the
time. The mean over random subsets that overlap is the same estimate with more noise, and the spread of
those subsets is no standard error: neither is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.neighbours import require_features, slices
from gen_unlearn.repro import numpy_generator

FULL_LIMIT = 10_000
"""Most images per set for which `kernel_distance_estimate` takes every pair."""

BLOCK = 1000
"""Images per block, of the larger set, beyond that."""

_ROUNDING = 1e-12
"""Difference up to which two distances count as equal, relative to the mean of the kernel."""


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the unbiased squared maximum mean discrepancy of features ``(n, d)`` and ``(m, d)``.

    The mean of the kernel over pairs within `x`, plus that within `y`, minus twice that between them, over
    all pairs of different rows.

    Raises:
        ValueError: if these are not finite features of one dimension with two rows or more.
    """
    _require_rows(x, y, 2)
    within_x, within_y, between = _sums_within(x), _sums_within(y), _sums_between(x, y)[0]
    return float(_distance(within_x.sum(), within_y.sum(), between.sum(), len(x), len(y)))


def kernel_distance_estimate(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Estimate:
    """Estimate the squared maximum mean discrepancy with its standard error over the draw of both sets.

    Up to `FULL_LIMIT` images in the larger set, the value is `kernel_distance`, and the standard error that
    of the delete-one jackknife, x and y added: right where the distributions differ, too large by up to 1.41
    where they are equal (Efron and Stein 1981). Beyond, both sets are split at random into as many disjoint
    blocks as the larger has thousands; the value is the mean of the distances of the blocks, and the standard
    error their standard deviation by the root of their number. `seed` matters only to the split.

    Args:
        x: floats of shape ``(n, d)``.
        y: floats of shape ``(m, d)``.
        seed: seed of the split into blocks.

    Raises:
        ValueError: if these are not finite features of one dimension, with three rows or more, and two or
            more per block.
    """
    _require_rows(x, y, 3)
    if max(len(x), len(y)) <= FULL_LIMIT:
        return _jackknife(x, y)
    blocks = max(len(x), len(y)) // BLOCK
    _require_rows(x, y, 2 * blocks)
    rng = numpy_generator("kernel blocks", seed)
    parts = zip(*(np.array_split(rng.permutation(len(rows)), blocks) for rows in (x, y)), strict=True)
    distances = np.array([kernel_distance(x[in_x], y[in_y]) for in_x, in_y in parts])
    return Estimate(float(distances.mean()), float(distances.std(ddof=1)) / math.sqrt(blocks))


def permutation_p_value(x: np.ndarray, y: np.ndarray, permutations: int = 200, seed: int = 0) -> float:
    """Test whether two sets of features ``(n, d)`` and ``(m, d)`` have one distribution.

    The p-value is ``(1 + count) / (1 + permutations)`` with the count of permutations of the pooled rows
    whose `kernel_distance` is at least the observed one: valid at any number of images. Each tile of the
    pooled kernel is multiplied with the indicators of all permutations at once.

    Raises:
        ValueError: if these are not finite features of one dimension with two rows or more, or there is no
            permutation.
    """
    _require_rows(x, y, 2)
    if permutations < 1:
        raise ValueError(f"expected at least one permutation, got {permutations}; 200 resolve p = 0.005")
    n, m = len(x), len(y)
    in_x = np.repeat((np.arange(n + m) < n).astype(np.float64)[:, None], 1 + permutations, axis=1)
    in_x[:, 1:] = numpy_generator("kernel permutations", seed).permuted(in_x[:, 1:], axis=0)
    pooled = np.concatenate([x, y])
    sums, within_x = np.zeros(n + m), np.zeros(1 + permutations)
    for rows, columns, tile in _tiles_within(pooled):
        _add_sums(sums, rows, columns, tile)
        products = np.einsum("ip,ip->p", in_x[rows], tile @ in_x[columns])
        within_x += products if rows == columns else 2 * products
    between = sums @ in_x - within_x
    within_y = sums.sum() - within_x - 2 * between
    distances = _distance(within_x, within_y, between, n, m)
    slack = _ROUNDING * np.abs(sums).sum() / (n + m) ** 2
    count = int((distances[1:] >= distances[0] - slack).sum())
    return (1 + count) / (1 + permutations)


def _jackknife(x: np.ndarray, y: np.ndarray) -> Estimate:
    """Estimate the distance with its delete-one jackknife error, from the sums over rows and columns."""
    n, m = len(x), len(y)
    of_x, of_y, (to_y, to_x) = _sums_within(x), _sums_within(y), _sums_between(x, y)
    within_x, within_y, between = of_x.sum(), of_y.sum(), to_y.sum()
    without_x = _distance(within_x - 2 * of_x, within_y, between - to_y, n - 1, m)
    without_y = _distance(within_x, within_y - 2 * of_y, between - to_x, n, m - 1)
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    return Estimate(float(_distance(within_x, within_y, between, n, m)), math.sqrt(variance))


def _distance(within_x: np.ndarray, within_y: np.ndarray, between: np.ndarray, n: int, m: int) -> np.ndarray:
    """Return the distance of `n` and `m` rows from sums of the kernel, without its diagonal, elementwise."""
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)


def _sums_within(x: np.ndarray) -> np.ndarray:
    """Return the sum of the kernel of each row of `x` with all others, float64 ``(n,)``."""
    sums = np.zeros(len(x))
    for rows, columns, tile in _tiles_within(x):
        _add_sums(sums, rows, columns, tile)
    return sums


def _sums_between(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of the kernel over `y` for each row of `x`, ``(n,)``, and over `x` for those of `y`."""
    to_y, to_x = np.zeros(len(x)), np.zeros(len(y))
    for rows in slices(len(x)):
        for columns in slices(len(y)):
            tile = _kernel(x[rows], y[columns])
            to_y[rows] += tile.sum(axis=1)
            to_x[columns] += tile.sum(axis=0)
    return to_y, to_x


def _add_sums(sums: np.ndarray, rows: slice, columns: slice, tile: np.ndarray) -> None:
    """Add to `sums` what a tile of `_tiles_within` and its mirror image contribute to the rows."""
    sums[rows] += tile.sum(axis=1)
    if rows != columns:
        sums[columns] += tile.sum(axis=0)


def _tiles_within(x: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield tiles of the kernel matrix of `x`, on and above its diagonal, which itself is set to 0."""
    for rows in slices(len(x)):
        for columns in slices(len(x)):
            if columns.start >= rows.start:
                tile = _kernel(x[rows], x[columns])
                if rows == columns:
                    np.fill_diagonal(tile, 0)
                yield rows, columns, tile


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return ``(<f, g> / d + 1)^3`` for all pairs of rows, float64 ``(n, m)``."""
    base = x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1
    return base * base * base


def _require_rows(x: np.ndarray, y: np.ndarray, least: int) -> None:
    """Raise a ValueError unless both are finite features of one dimension with `least` rows or more."""
    require_features(x, y)
    if min(len(x), len(y)) < least:
        raise ValueError(
            f"expected at least {least} feature vectors in each set, got {len(x)} and {len(y)}; "
            "generate more images"
        )
