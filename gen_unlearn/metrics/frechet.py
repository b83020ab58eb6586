"""The Fréchet distance between two sets of features (Heusel et al. 2017), with its standard error.

The estimate is biased upwards by about ``C / N``, where `C` depends on the features and not on `N`: compare
distances only at equal numbers of images and to one reference. `frechet_distance` cannot know what its value
will be compared with; `FrechetMeasurement.minus` refuses what may not be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.features import FeatureStats, MeasurementProtocol, require_same_protocol


@dataclass(frozen=True)
class FrechetMeasurement:
    """Hold a Fréchet distance with its error and with all that it may be compared by.

    Attributes:
        value: the distance as estimated, at least 0, biased upwards by about ``C / n``.
        standard_error: that of `value` over the draw of the `n` images; `None` if it was not measured.
        jackknife_corrected: the distance with its bias removed, which may be below 0; `None` if not measured.
        n: number of images.
        reference_n: number of images of the reference.
        reference_digest: what identifies the images of the reference.
        protocol: how the features of both were measured.

    Raises:
        ValueError: if a number is not finite, the value or its error negative, or there are too few images.
    """

    value: float
    standard_error: float | None
    jackknife_corrected: float | None
    n: int
    reference_n: int
    reference_digest: str
    protocol: MeasurementProtocol

    def __post_init__(self) -> None:
        numbers = (self.value, self.standard_error or 0.0, self.jackknife_corrected or 0.0)
        if not all(map(math.isfinite, numbers)) or min(numbers[:2]) < 0 or min(self.n, self.reference_n) < 2:
            raise ValueError(
                "expected a finite distance and error >= 0 of at least 2 images to a reference of 2 or more, "
                f"got {self.value} and {self.standard_error} (corrected: {self.jackknife_corrected}) of "
                f"{self.n} images to {self.reference_n}; use None for what could not be measured"
            )

    def minus(self, other: FrechetMeasurement, paired_error: float | None = None) -> Estimate:
        """Return the difference of two distances, that have one bias and one reference, with its error.

        Args:
            other: what to subtract.
            paired_error: the error of the difference from `paired_standard_error`, for images drawn from
                common seeds; `None` for independent draws, whose errors add in quadrature.

        Raises:
            ValueError: if the number of images, the protocol or the reference differ, or if an error is not
                known.
        """
        mine, theirs = self._compared_by(), other._compared_by()
        differences = [
            f"{name} ({mine[name]} and {theirs[name]})" for name in mine if mine[name] != theirs[name]
        ]
        if differences:
            raise ValueError(
                f"expected two distances at one number of images, protocol and reference, got different "
                f"{', '.join(differences)}; measure both again alike"
            )
        if paired_error is None:
            if self.standard_error is None or other.standard_error is None:
                raise ValueError(
                    f"expected the standard errors of both distances, got {self.standard_error} and "
                    f"{other.standard_error}; estimate them, or give the paired error of the difference"
                )
            paired_error = math.hypot(self.standard_error, other.standard_error)
        return Estimate(self.value - other.value, paired_error)

    def _compared_by(self) -> dict[str, object]:
        """Return what must be equal in two distances that may be compared."""
        return {
            "number of images": self.n,
            "feature extractor": f"{self.protocol.extractor} {self.protocol.extractor_digest}",
            "resize": self.protocol.resize,
            "input shape": self.protocol.input_shape,
            "reference digest": self.reference_digest,
            "number of reference images": self.reference_n,
        }


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """Compute ``|m_a - m_b|^2 + Tr(S_a + S_b) - 2 Tr sqrt(S_a S_b)`` in float64, at least 0.

    The last trace is that of ``sqrt(R S_a R)`` with ``R = sqrt(S_b)``, from symmetric eigenvalues.

    Raises:
        ValueError: if the two were measured under different protocols or their dimensions differ.
    """
    return distance_to(b)(a)


def distance_to(reference: FeatureStats) -> Callable[[FeatureStats], float]:
    """Return `frechet_distance` to `reference` as a function, which shares the square root among its calls.

    The function raises a ValueError for another protocol or dimension than those of `reference`.
    """
    root, spread = _square_root(reference.cov), np.trace(reference.cov)

    def distance(stats: FeatureStats) -> float:
        _require_comparable(stats, reference)
        gap = np.square(stats.mean - reference.mean).sum()
        return max(0.0, float(gap + spread + np.trace(stats.cov) - 2 * _cross_trace(root, stats.cov)))

    return distance


def frechet_distance_of_features(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the Fréchet distance between features of shapes ``(n, d)`` and ``(m, d)``, at least 0.

    Unless both sets have more images than dimensions, ``Tr sqrt(S_x S_y)`` is the nuclear norm of
    ``X Y^T / sqrt((n - 1) (m - 1))`` with centred rows `X` and `Y`: exact where the covariances are singular,
    and much faster than their roots. A set of more images than dimensions enters by its triangular factor, so
    that nothing larger than ``(d, d)`` is decomposed. Otherwise it takes the way of `frechet_distance`. Both
    are float64 and agree to 3e-6, relatively. The caller sees to it that both were measured under one
    protocol.

    Raises:
        ValueError: if the dimensions differ, a set has fewer than two rows, or a value is not finite.
    """
    (mean_x, rows_x), (mean_y, rows_y) = _centred(x), _centred(y)
    if len(mean_x) != len(mean_y):
        raise ValueError(
            f"expected features of one dimension, got {len(mean_x)} and {len(mean_y)}; "
            "extract both with the same extractor"
        )
    if min(len(rows_x), len(rows_y)) <= len(mean_x):
        cross = float(scipy.linalg.svdvals(_triangular(rows_x) @ _triangular(rows_y).T).sum())
    else:
        cross = _cross_trace(_square_root(rows_x.T @ rows_x), rows_y.T @ rows_y)
    spread = np.square(rows_x).sum() / (len(rows_x) - 1) + np.square(rows_y).sum() / (len(rows_y) - 1)
    cross /= math.sqrt((len(rows_x) - 1) * (len(rows_y) - 1))
    return max(0.0, float(np.square(mean_x - mean_y).sum() + spread - 2 * cross))


def influence_function(stats: FeatureStats, reference: FeatureStats) -> Callable[[np.ndarray], np.ndarray]:
    """Return the influence of an image on the Fréchet distance of its set to `reference`, as a function.

    With the mean ``m`` and covariance ``S`` of the set, those of the reference ``m_r`` and ``S_r = R R``,
    and ``T = R (R S R)^(-1/2) R``, the influence function of the distance is
    ``psi(x) = 2 (x - m)^T (m - m_r) + (x - m)^T (I - T) (x - m)`` up to a constant: the delta method. The
    inverse leaves out directions in which either set does not vary. The constant gives psi the mean 0 over
    the set that `stats` describes.

    Args:
        stats: statistics of the set whose distance it is.
        reference: statistics of the set to compare with, taken as exact.

    Returns:
        A function that maps a block of features ``(b, d)`` to float64 ``(b,)``, each row on its own; it
        raises a ValueError for another shape.

    Raises:
        ValueError: if the protocols or dimensions differ, or n <= d, where the closed form does not hold.
    """
    _require_comparable(stats, reference)
    dim = len(reference.mean)
    if stats.n <= dim:
        raise ValueError(
            f"expected more images than feature dimensions, got {stats.n} images and {dim} dimensions; "
            f"generate more images (4 x {dim} for a reliable error) or project the features"
        )
    root = _square_root(reference.cov)
    values, vectors = scipy.linalg.eigh(root @ stats.cov @ root)
    kept = values > values[-1] * dim * np.finfo(np.float64).eps
    whitening = root @ (vectors[:, kept] * values[kept] ** -0.25)  # T = whitening whitening^T
    slope = 2 * (stats.mean - reference.mean)
    constant = np.trace(stats.cov) - np.sum(whitening * (stats.cov @ whitening))  # Tr (I - T) S
    constant *= (stats.n - 1) / stats.n

    def influence(features: np.ndarray) -> np.ndarray:
        if features.ndim != 2 or features.shape[1] != dim:
            raise ValueError(
                f"expected features of shape (b, {dim}) as in the reference, got {features.shape}; "
                "extract both with the same extractor"
            )
        centred = features - stats.mean
        quadratic = np.square(centred).sum(axis=1) - np.square(centred @ whitening).sum(axis=1)
        return centred @ slope + quadratic - constant

    return influence


def frechet_standard_error(features: np.ndarray, reference: FeatureStats) -> float:
    """Compute the standard error ``sd(psi) / sqrt(n)`` of the Fréchet distance of features to `reference`.

    It covers the draw of `features` ``(n, d)`` only, at a fixed reference: the error that matters when
    models are compared against one reference. Within a few percent for n >= 4 d; too large by about a
    quarter at n = 2 d. A percentile bootstrap is no substitute, its replicates are biased.

    Raises:
        ValueError: if the dimensions differ, or n <= d.
    """
    psi = influence_function(FeatureStats.from_features(features, reference.protocol), reference)(features)
    return float(psi.std(ddof=1)) / math.sqrt(len(features))


def paired_standard_error(influence_a: np.ndarray, influence_b: np.ndarray) -> float:
    """Compute the standard error ``sd(psi_a - psi_b) / sqrt(n)`` of a difference of two distances.

    For two models whose image *i* was drawn from the same seed: what the images share cancels.

    Args:
        influence_a: `influence_function` of the first model at its own images, shape ``(n,)``.
        influence_b: that of the second model at its own, in the same order of seeds.

    Raises:
        ValueError: if the shapes differ, or there are fewer than two images.
    """
    if influence_a.ndim != 1 or influence_a.shape != influence_b.shape or len(influence_a) < 2:
        raise ValueError(
            f"expected two influences of one shape (n,) with n >= 2, got {influence_a.shape} and "
            f"{influence_b.shape}; draw both sets of images from the same seeds"
        )
    return float((influence_a - influence_b).std(ddof=1)) / math.sqrt(len(influence_a))


def _require_comparable(stats: FeatureStats, reference: FeatureStats) -> None:
    """Raise a ValueError unless both have one protocol and one dimension."""
    require_same_protocol(stats, reference)
    if len(stats.mean) != len(reference.mean):
        raise ValueError(
            f"expected features of dimension {len(reference.mean)} as in the reference, got "
            f"{len(stats.mean)}; extract both with the same extractor"
        )


def _centred(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean ``(d,)`` of features ``(n, d)`` and the rows minus it, both float64."""
    if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
        raise ValueError(
            f"expected finite features of shape (n, d) with n >= 2, got {features.shape}; "
            "check the images and the weights of the extractor"
        )
    mean = features.mean(axis=0, dtype=np.float64)
    return mean, features - mean


def _triangular(rows: np.ndarray) -> np.ndarray:
    """Return `rows` ``(n, d)``, or for n > d its triangular factor ``(d, d)``, of the same ``Y^T Y``."""
    return scipy.linalg.qr(rows, mode="r")[0][: rows.shape[1]] if len(rows) > rows.shape[1] else rows


def _cross_trace(root: np.ndarray, cov: np.ndarray) -> float:
    """Compute ``Tr sqrt(R S R)`` of a symmetric root and a covariance, negative rounding left out."""
    return float(np.sqrt(scipy.linalg.eigvalsh(root @ cov @ root).clip(min=0)).sum())


def _square_root(cov: np.ndarray) -> np.ndarray:
    """Return the symmetric square root of a covariance, negative rounding in its spectrum set to zero."""
    values, vectors = scipy.linalg.eigh(cov)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
