"""KLoM: the divergence of the margins of unlearned models from those of retrained ones, per image.

Georgiev et al., "Attribute-to-Delete: Machine Unlearning via Datamodel Matching" (arXiv 2410.23232).

Even pools of one law differ: with 16 models each the mean of the histogram form is 3.8 nats, with 100 it is
0.35. Compare a value only with `permutation_floor`, or with that of two retrained pools of the same sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gen_unlearn.metrics.auc import TAIL, Interval
from gen_unlearn.metrics.estimate import Estimate, mean_error
from gen_unlearn.metrics.margins import require_margin_pools
from gen_unlearn.repro import numpy_generator

BINS = 20
CLIP = 100.0
"""Margins are clipped to [-CLIP, CLIP]."""

_EMPTY_BIN = 1e-5
_LEAST_VARIANCE = 1e-4
"""Of a fitted normal: odds that differ by a hundredth are the same."""

_MOST = float(-np.log(_EMPTY_BIN))
"""The most that one image counts with fitted normals, 11.5 nats: that of histograms without a common bin.

Where all retrained models agree, as on images that they are sure of, a normal has next to no width, and one
image would outweigh all others.
"""

LEAST_FOR_ERRORS = 4
"""Smallest pool that shows how a divergence varies with its models."""

_REPLICATES = 200
_TILE = 4_000_000

Form = Literal["hist20", "hist20_half_count", "gauss"]
"""Divergence of `klom_hist20` with an ``"epsilon"`` or a ``"half_count"`` per bin, or of `klom_gauss`."""

Smoothing = Literal["epsilon", "half_count"]
"""What an empty bin gets: 1e-5 added to every probability, or half a margin added to every bin."""


@dataclass(frozen=True)
class KlomResult:
    """Hold divergences of unlearned from retrained margins, in nats.

    Standard errors are those of other images with the same models.

    Attributes:
        form: which divergence.
        mean: mean over images.
        p95: 95th percentile over images.
        models: number of unlearned models.
        retrained: number of retrained models.
        per_image: divergence of each image, float64 ``(n,)``.
    """

    form: Form
    mean: Estimate
    p95: Estimate
    models: int
    retrained: int
    per_image: np.ndarray = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return all but the divergences of single images as a JSON-able dictionary."""
        return {
            "form": self.form,
            "mean": self.mean.as_dict(),
            "p95": self.p95.as_dict(),
            "models": self.models,
            "retrained": self.retrained,
        }


@dataclass(frozen=True)
class KlomFloor:
    """Hold what a divergence reads where unlearned and retrained models follow one law, in nats.

    Attributes:
        form: which divergence.
        mean: mean over permutations of the mean over images; the error is the deviation of one permutation.
        mean_interval: the central 95 % of the permutations.
        p95: the same of the 95th percentile over images.
        p95_interval: the central 95 % of the permutations.
        permutations: number of permutations.
    """

    form: Form
    mean: Estimate
    mean_interval: Interval
    p95: Estimate
    p95_interval: Interval
    permutations: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything as a JSON-able dictionary."""
        return {
            **vars(self),
            "mean": self.mean.as_dict(),
            "mean_interval": list(self.mean_interval),
            "p95": self.p95.as_dict(),
            "p95_interval": list(self.p95_interval),
        }


def klom_hist20(
    unlearned: np.ndarray, retrained: np.ndarray, smoothing: Smoothing = "epsilon", seed: int = 0
) -> KlomResult:
    """Compute ``KL(unlearned || retrained)`` of histograms of the margins of each image.

    Margins are clipped to ±100. The 20 bins have equal widths and span both pools, maximum included. Made for
    100 models in each pool; use `klom_gauss` with fewer.

    Args:
        unlearned: margins ``(models, n)``, one model or more, two images or more.
        retrained: margins ``(retrained, n)``, one or more.
        smoothing: what an empty bin gets.
        seed: seed of the bootstrap over images behind the error of the percentile.

    Raises:
        ValueError: if the shapes do not match, a pool is empty, a margin is not finite, or the smoothing is
            unknown.
    """
    if smoothing not in ("epsilon", "half_count"):
        raise ValueError(f"expected smoothing 'epsilon' or 'half_count', got {smoothing!r}; name one of them")
    return _result(unlearned, retrained, "hist20" if smoothing == "epsilon" else "hist20_half_count", seed)


def klom_gauss(unlearned: np.ndarray, retrained: np.ndarray, seed: int = 0) -> KlomResult:
    """Compute ``KL(unlearned || retrained)`` of normals fitted to the margins of each image.

    ``log(s_R / s_U) + (s_U^2 + (m_U - m_R)^2) / (2 s_R^2) - 1/2`` for means `m` and deviations `s` of margins
    clipped to ±100. For pools too small for histograms. A deviation counts as 0.01 at least, and an image as
    ``-log(1e-5)`` at most, the divergence of histograms that share no bin.

    Args:
        unlearned: margins ``(models, n)``, two models or more, two images or more.
        retrained: margins ``(retrained, n)``, two or more.
        seed: seed of the bootstrap over images behind the error of the percentile.

    Raises:
        ValueError: if the shapes do not match, a pool has one model, or a margin is not finite.
    """
    return _result(unlearned, retrained, "gauss", seed)


def permutation_floor(
    unlearned: np.ndarray,
    retrained: np.ndarray,
    form: Form = "hist20",
    permutations: int = 100,
    seed: int = 0,
) -> KlomFloor:
    """Measure what the divergence reads if it does not matter which models are the unlearned ones.

    Models are dealt anew to two pools of the same sizes, each with its margins on all images. A value above
    `mean_interval` refutes that both pools follow one law.

    Args:
        unlearned: margins ``(models, n)``, two images or more.
        retrained: margins ``(retrained, n)``.
        form: which divergence; ``"gauss"`` needs two models in each pool, the others one.
        permutations: number of permutations, two or more.
        seed: seed of the permutations.

    Raises:
        ValueError: if the shapes do not match, a pool is too small, a margin is not finite, the form is
            unknown, or there are fewer than two permutations.
    """
    if permutations < 2:
        raise ValueError(f"expected at least two permutations, got {permutations}; 100 is the default")
    pool, models = _pooled(unlearned, retrained, form)
    generator = numpy_generator("KLoM permutations", seed)
    values = []
    for _ in range(permutations):
        per_image = _divergences(pool, generator.permutation(len(pool))[:models], form)
        values.append((per_image.mean(), np.percentile(per_image, 95)))
    drawn = np.array(values)
    centre, spread = drawn.mean(axis=0), drawn.std(axis=0, ddof=1)
    low, high = np.quantile(drawn, [TAIL, 1 - TAIL], axis=0)
    return KlomFloor(
        form,
        mean=Estimate(float(centre[0]), float(spread[0])),
        mean_interval=(float(low[0]), float(high[0])),
        p95=Estimate(float(centre[1]), float(spread[1])),
        p95_interval=(float(low[1]), float(high[1])),
        permutations=permutations,
    )


def model_errors(unlearned: np.ndarray, retrained: np.ndarray, form: Form = "hist20") -> tuple[float, float]:
    """Return the errors of mean and 95th percentile for other models on the same images.

    The jackknife over indices of both pools: models of the same index belong together. Further models of the
    larger pool go with the index that they equal modulo the size of the smaller one.

    Args:
        unlearned: margins ``(models, n)``, four models or more, two images or more.
        retrained: margins ``(retrained, n)``, four or more.
        form: which divergence.

    Raises:
        ValueError: if the shapes do not match, a pool has fewer than four models, a margin is not finite, or
            the form is unknown.
    """
    unlearned, retrained = require_margin_pools(unlearned, retrained, LEAST_FOR_ERRORS)
    count, values = min(len(unlearned), len(retrained)), []
    for index in range(count):
        own, other = (pool[np.arange(len(pool)) % count != index] for pool in (unlearned, retrained))
        pool, models = _pooled(own, other, form)
        per_image = _divergences(pool, np.arange(models), form)
        values.append((per_image.mean(), np.percentile(per_image, 95)))
    mean, p95 = np.std(values, axis=0) * np.sqrt(count - 1)
    return float(mean), float(p95)


def _result(unlearned: np.ndarray, retrained: np.ndarray, form: Form, seed: int) -> KlomResult:
    """Measure one divergence with its errors over images."""
    pool, models = _pooled(unlearned, retrained, form)
    per_image = _divergences(pool, np.arange(models), form)
    generator = numpy_generator("KLoM bootstrap", seed)
    rows = max(1, _TILE // len(per_image))
    drawn = np.concatenate(
        [
            np.percentile(
                generator.choice(per_image, (min(rows, _REPLICATES - start), len(per_image))), 95, axis=1
            )
            for start in range(0, _REPLICATES, rows)
        ]
    )
    return KlomResult(
        form,
        mean=Estimate(float(per_image.mean()), mean_error(per_image, None)),
        p95=Estimate(float(np.percentile(per_image, 95)), float(drawn.std(ddof=1))),
        models=models,
        retrained=len(pool) - models,
        per_image=per_image,
    )


def _pooled(unlearned: np.ndarray, retrained: np.ndarray, form: Form) -> tuple[np.ndarray, int]:
    """Return what a divergence needs of all models, unlearned ones first, and the number of the latter.

    For histograms that is the bin of each margin: the range is that of both pools, however they are dealt.
    """
    if form not in ("hist20", "hist20_half_count", "gauss"):
        raise ValueError(f"expected a form 'hist20', 'hist20_half_count' or 'gauss', got {form!r}; name one")
    unlearned, retrained = require_margin_pools(unlearned, retrained, 2 if form == "gauss" else 1)
    if unlearned.shape[1] < 2:
        raise ValueError(
            "expected two images or more, got one, which has no standard error; pass more images"
        )
    margins = np.clip(np.concatenate([unlearned, retrained]), -CLIP, CLIP)
    if form == "gauss":
        return margins, len(unlearned)
    low = margins.min(axis=0)
    span = margins.max(axis=0) - low
    place = (margins - low) / np.where(span > 0, span, 1) * BINS
    return np.minimum(place.astype(np.int64), BINS - 1), len(unlearned)


def _divergences(pool: np.ndarray, unlearned: np.ndarray, form: Form) -> np.ndarray:
    """Return the divergence of each image, float64 ``(n,)``, if the given rows are the unlearned models."""
    rest = np.setdiff1d(np.arange(len(pool)), unlearned)
    if form == "gauss":
        return _normal_divergences(pool[unlearned], pool[rest])
    p, q = (_histograms(pool[rows], form) for rows in (unlearned, rest))
    return np.maximum((p * np.log(p / q)).sum(axis=1), 0)


def _histograms(bins: np.ndarray, form: Form) -> np.ndarray:
    """Return smoothed probabilities ``(n, BINS)`` of bins ``(models, n)``."""
    models, images = bins.shape
    flat = (bins + BINS * np.arange(images)).ravel()
    counts = np.bincount(flat, minlength=BINS * images).reshape(images, BINS)
    smoothed = counts / models + _EMPTY_BIN if form == "hist20" else counts + 0.5
    return smoothed / smoothed.sum(axis=1, keepdims=True)


def _normal_divergences(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """Return the divergence of normals with the means and unbiased variances of both pools."""
    own = np.maximum(unlearned.var(axis=0, ddof=1), _LEAST_VARIANCE)
    other = np.maximum(retrained.var(axis=0, ddof=1), _LEAST_VARIANCE)
    shift = unlearned.mean(axis=0) - retrained.mean(axis=0)
    return np.minimum(np.log(other / own) / 2 + (own + shift**2) / (2 * other) - 0.5, _MOST)
