"""The Fréchet distance between two sets of features (Heusel et al. 2017), with its standard error.

The estimate is biased upwards by about ``C / N``, where `C` depends on the features and not on `N`: compare
distances only at equal numbers of images, or report both. The functions here do not refuse unequal
numbers, because the reference sets of two models may differ by the images that were deleted.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg

from gen_unlearn.metrics.features import FeatureStats, require_same_protocol


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """Compute ``|m_a - m_b|^2 + Tr(S_a + S_b) - 2 Tr sqrt(S_a S_b)`` in float64, at least 0.

    The last trace is that of ``sqrt(R S_b R)`` with ``R = sqrt(S_a)``, from symmetric eigenvalues.

    Raises:
        ValueError: if the two were measured under different protocols.
    """
    require_same_protocol(a, b)
    root = _square_root(a.cov)
    spectrum = scipy.linalg.eigvalsh(root @ b.cov @ root)
    cross = np.sqrt(spectrum.clip(min=0)).sum()
    distance = np.square(a.mean - b.mean).sum() + np.trace(a.cov) + np.trace(b.cov) - 2 * cross
    return max(0.0, float(distance))


def frechet_influence(features: np.ndarray, reference: FeatureStats) -> np.ndarray:
    """Return the influence of each image on its Fréchet distance to `reference`, centred.

    With the mean ``m`` and covariance ``S`` of the features, those of the reference ``m_r`` and
    ``S_r = R R``, and ``T = R (R S R)^(-1/2) R``, the influence function of the distance is
    ``psi(x) = 2 (x - m)^T (m - m_r) + (x - m)^T (I - T) (x - m)`` up to a constant: the delta method. The
    inverse leaves out directions in which either set does not vary.

    Args:
        features: floats of shape ``(n, d)``, measured under the protocol of `reference`.
        reference: statistics of the set to compare with, taken as exact.

    Returns:
        float64 of shape ``(n,)`` with mean 0.

    Raises:
        ValueError: if the dimensions differ, or n <= d, where the closed form does not hold.
    """
    stats = FeatureStats.from_features(features, reference.protocol)
    n, dim = features.shape
    if dim != len(reference.mean):
        raise ValueError(
            f"expected features of dimension {len(reference.mean)} as in the reference, got {dim}; "
            "extract both with the same extractor"
        )
    if n <= dim:
        raise ValueError(
            f"expected more images than feature dimensions, got {n} images and {dim} dimensions; "
            f"generate more images (4 x {dim} for a reliable error) or project the features"
        )
    root = _square_root(reference.cov)
    values, vectors = scipy.linalg.eigh(root @ stats.cov @ root)
    kept = values > values[-1] * dim * np.finfo(np.float64).eps
    whitening = root @ (vectors[:, kept] * values[kept] ** -0.25)  # T = whitening whitening^T
    centred = features - stats.mean
    influence = 2 * centred @ (stats.mean - reference.mean)
    influence += np.square(centred).sum(axis=1) - np.square(centred @ whitening).sum(axis=1)
    return influence - influence.mean()


def frechet_standard_error(features: np.ndarray, reference: FeatureStats) -> float:
    """Compute the standard error ``sd(psi) / sqrt(n)`` of the Fréchet distance of features to `reference`.

    It covers the draw of `features` ``(n, d)`` only, at a fixed reference: the error that matters when
    models are compared against one reference. Within a few percent for n >= 4 d; too large by about a
    quarter at n = 2 d. A percentile bootstrap is no substitute, its replicates are biased.

    Raises:
        ValueError: if the dimensions differ, or n <= d.
    """
    return float(frechet_influence(features, reference).std(ddof=1)) / math.sqrt(len(features))


def paired_standard_error(influence_a: np.ndarray, influence_b: np.ndarray) -> float:
    """Compute the standard error ``sd(psi_a - psi_b) / sqrt(n)`` of a difference of two distances.

    For two models whose image *i* was drawn from the same seed: what the images share cancels.

    Args:
        influence_a: `frechet_influence` of the first model's images, shape ``(n,)``.
        influence_b: that of the second model's images, in the same order of seeds.

    Raises:
        ValueError: if the shapes differ.
    """
    if influence_a.ndim != 1 or influence_a.shape != influence_b.shape:
        raise ValueError(
            f"expected two influences of one shape (n,), got {influence_a.shape} and {influence_b.shape}; "
            "draw both sets of images from the same seeds"
        )
    return float((influence_a - influence_b).std(ddof=1)) / math.sqrt(len(influence_a))


def _square_root(cov: np.ndarray) -> np.ndarray:
    """Return the symmetric square root of a covariance, negative rounding in its spectrum set to zero."""
    values, vectors = scipy.linalg.eigh(cov)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
