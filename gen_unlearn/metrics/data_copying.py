"""Whether a generator copies its training set as a whole, from features of training and generated images.

Three views: how many generated images lie nearer to a training image than its own neighbour does
(`authenticity`), whether they lie nearer to the training set than test images do (`copying_z`), and the
Fréchet distance with a penalty for copies (`memorization_informed_fid`). None names a particular image; for
that see `gen_unlearn.metrics.copying`. Roles are keywords, because swapping them changes every result.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.stats
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from gen_unlearn.metrics.estimate import Estimate, proportion
from gen_unlearn.metrics.neighbours import nearest_features, nearest_others, require_features, slices
from gen_unlearn.repro import derive_seed

CELL_MINIMUM = 20
"""A cell of `copying_z` counts if more than this many generated, and test, images lie in it."""

PRINCIPAL_COMPONENTS = 64
"""Most directions of the training features in which `copying_z` measures distances."""


@dataclass(frozen=True)
class CopyingCell:
    """Hold how many images of each set lie in a cell, and its z, or None where too few do for one."""

    train: int
    test: int
    generated: int
    z: float | None


@dataclass(frozen=True)
class CopyingZ:
    """Hold the copying statistic and the cells, by descending number of training images.

    Attributes:
        statistic: far below 0 for copies, far above 0 for underfitting. Its standard error is the one
            under the null hypothesis, so that ``value / standard_error`` is a standard normal score. `None`
            if no cell has enough images.
        cells: every cell, also those left out.
    """

    statistic: Estimate | None
    cells: tuple[CopyingCell, ...]

    @property
    def left_out(self) -> int:
        """Return the number of cells with too few images to count."""
        return sum(cell.z is None for cell in self.cells)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as a JSON-able dictionary."""
        statistic = None if self.statistic is None else self.statistic.as_dict()
        return {"statistic": statistic, "cells": [asdict(cell) for cell in self.cells]}


def authenticity(*, train: np.ndarray, generated: np.ndarray) -> Estimate:
    """Estimate the share of generated images that are no copies, in [0, 1] (Alaa et al. 2022).

    An image is authentic if its nearest training image has a training neighbour strictly closer to it. The
    share is not 1 for a perfect generator: independent draws of one distribution are authentic with
    probability 1/3 in one dimension, 0.378 in two, and 0.8 for Gaussian features in 64. Compare with the
    share of test images, given as `generated`. The standard error covers the draw of the generated images.

    Args:
        train: floats of shape ``(n, d)``, n >= 2.
        generated: floats of shape ``(m, d)``.

    Raises:
        ValueError: if these are not finite features of one dimension, or there is one training image.
    """
    distance, nearest = nearest_features(generated, train)
    alone = nearest_others(train)[0]
    return proportion(int((alone[nearest[:, 0]] < distance).sum()), len(generated))


def copying_z(
    *, train: np.ndarray, test: np.ndarray, generated: np.ndarray, cells: int = 3, seed: int = 0
) -> CopyingZ:
    """Compare the distances of generated and of test images to the training set (Meehan et al. 2020, C_T).

    The features, projected to the first principal components of the training set, are split into cells by
    k-means. In each, distances to the nearest training image of the cell are compared by the z-score of the
    Mann-Whitney U, corrected for ties and without a correction for continuity. The statistic is the mean of
    the z of the cells with more than `CELL_MINIMUM` generated and test images, weighted by their share of
    the test images. Test images must come from the distribution of the training images and be none of them.

    Args:
        train: floats of shape ``(n, d)``.
        test: floats of shape ``(t, d)``.
        generated: floats of shape ``(m, d)``.
        cells: cells of the training set.
        seed: seed of k-means.

    Raises:
        ValueError: if these are not finite features of one dimension, or there are more cells than training
            images.
    """
    require_features(train, test, generated)
    if not 1 <= cells <= len(train) or len(train) < 2:
        raise ValueError(
            f"expected two training images or more and at most as many cells, got {len(train)} training "
            f"images and {cells} cells; 3 cells are usual"
        )
    sets = _project(train, test, generated)
    clustering = KMeans(cells, n_init=10, random_state=derive_seed("copying cells", seed) % 2**32)
    clustering.fit(sets[0])
    labels = [clustering.predict(rows) for rows in sets]
    found = [
        _compare(*(rows[own == cell] for rows, own in zip(sets, labels, strict=True)))
        for cell in range(cells)
    ]
    return _weigh(tuple(sorted(found, key=lambda cell: -cell.train)))


def mean_minimum_cosine_distance(*, train: np.ndarray, generated: np.ndarray) -> Estimate:
    """Estimate the mean over generated images of ``min 1 - |cos|`` over the training images, in [0, 1].

    Rows of zeros have no direction and are left out. The standard error, ``sd / sqrt(n)``, covers the draw of
    the generated images.

    Args:
        train: floats of shape ``(n, d)``.
        generated: floats of shape ``(m, d)``.

    Raises:
        ValueError: if these are not finite features of one dimension, one has only rows of zeros, or there
            is one generated image.
    """
    require_features(train, generated)
    towards, directions = _directions(train), _directions(generated)
    if len(directions) < 2:
        raise ValueError("expected at least two generated images with a direction, got 1; generate more")
    cosine = np.zeros(len(directions))
    for rows in slices(len(directions)):
        for columns in slices(len(towards)):
            found = np.abs(directions[rows] @ towards[columns].T).max(axis=1)
            np.maximum(cosine[rows], found, out=cosine[rows])
    distances = 1 - cosine.clip(max=1)
    return Estimate(float(distances.mean()), float(distances.std(ddof=1)) / math.sqrt(len(distances)))


def memorization_informed_fid(
    fid: Estimate, *, train: np.ndarray, generated: np.ndarray, tau: float = 0.1
) -> Estimate:
    """Estimate the Fréchet distance divided by `mean_minimum_cosine_distance` if that is below `tau`.

    Bai et al. 2021: higher means worse, and generators that do not copy keep their distance. A distance of
    at most 1e-8 counts as 0, and 1e-14 is added to the divisor, as torchmetrics does; torchmetrics however
    takes the mean over the set that it calls real, so that swapping its sets gives the number computed here.

    The standard error of ``F / D`` is ``sqrt(s_F^2 + (s_D F / D)^2) / D``, with both as independent.

    Args:
        fid: the Fréchet distance of the generated features to a reference, at least 0, with its error.
        train: floats of shape ``(n, d)``, the images that may have been copied.
        generated: floats of shape ``(m, d)``.
        tau: mean distance from which on nothing counts as copied; 0.1 suits Inception features.

    Raises:
        ValueError: if the distance is negative, these are not finite features of one dimension, one has only
            rows of zeros, or there is one generated image.
    """
    if fid.value < 0:
        raise ValueError(f"expected a Fréchet distance >= 0, got {fid.value}; compute it first")
    distance = mean_minimum_cosine_distance(train=train, generated=generated)
    value = fid.value if fid.value > 1e-8 else 0.0
    if distance.value >= tau:
        return Estimate(value, fid.standard_error)
    divisor = distance.value + 1e-14
    error = math.hypot(fid.standard_error, distance.standard_error * value / divisor)
    return Estimate(value / divisor, error / divisor)


def _project(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Return the scores of `train` and `others` in principal components of `train`, float32 ``(n, p)``.

    Rounding to float32 makes equal those that the matrix products leave apart by the last bits of float64:
    copies are at distance 0.
    """
    components = PCA(min(PRINCIPAL_COMPONENTS, *train.shape), svd_solver="covariance_eigh")
    components.fit(train.astype(np.float64))
    return [components.transform(rows.astype(np.float64)).astype(np.float32) for rows in (train, *others)]


def _compare(train: np.ndarray, test: np.ndarray, generated: np.ndarray) -> CopyingCell:
    """Compare the distances of `generated` and `test` to `train`, all of one cell, by their ranks."""
    m, t = len(generated), len(test)
    if min(m, t) <= CELL_MINIMUM:
        return CopyingCell(len(train), t, m, None)
    distances = nearest_features(np.concatenate([generated, test]), train)[0][:, 0]
    ranks = scipy.stats.rankdata(distances)
    _, tied = np.unique(distances, return_counts=True)
    total = m + t
    ties = float((tied.astype(np.float64) ** 3 - tied).sum()) / (total * (total - 1))
    variance = m * t / 12 * (total + 1 - ties)
    excess = ranks[:m].sum() - m * (total + 1) / 2  # U of the generated images minus its mean
    return CopyingCell(len(train), t, m, float(excess / math.sqrt(variance)) if variance > 0 else 0.0)


def _weigh(cells: tuple[CopyingCell, ...]) -> CopyingZ:
    """Average the z of the cells; under the null they are independent and of variance 1."""
    counted = [(cell.test, cell.z) for cell in cells if cell.z is not None]
    if not counted:
        return CopyingZ(None, cells)
    weights = np.array([test for test, _ in counted], dtype=np.float64)
    weights /= weights.sum()
    value = float(weights @ np.array([z for _, z in counted]))
    return CopyingZ(Estimate(value, float(np.linalg.norm(weights))), cells)


def _directions(features: np.ndarray) -> np.ndarray:
    """Return the rows that are not zero, scaled to length 1, float64 ``(n, d)``."""
    norms = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    kept = norms[:, 0] > 0
    if not kept.any():
        raise ValueError(
            f"expected features with a direction, got {len(features)} rows of zeros; check the extractor"
        )
    return features[kept] / norms[kept]
