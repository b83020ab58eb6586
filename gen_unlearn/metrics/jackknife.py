"""The bias of a Fréchet distance, which is about ``C / N``, and its error, without a closed form.

The moments of parts of the images are enough, so that neither the features are kept nor their number matters:
unlike the influence function, both estimators also work with fewer images than feature dimensions. A
bootstrap is no substitute: repeated images add a bias of their own and inflate the error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from gen_unlearn.metrics.features import FeatureStats, MeasurementProtocol
from gen_unlearn.metrics.frechet import distance_to


@dataclass(frozen=True)
class Jackknife:
    """Hold a Fréchet distance, the same with its bias removed, and the standard error of the distance.

    The error serves for both: the correction does not make the estimate noisier where N >= 4 d.
    """

    value: float
    corrected: float
    standard_error: float


def block_jackknife(blocks: Sequence[FeatureStats], reference: FeatureStats) -> Jackknife:
    """Estimate bias and error of the Fréchet distance by leaving out one block at a time (Quenouille 1956).

    With the distance ``F`` of all images and those ``F_b`` without block *b* of ``B``, the bias is
    ``(B - 1) (mean F_b - F)`` and the variance ``(B - 1) / B * sum (F_b - mean F_b)^2``. The error is right
    on average, and itself uncertain by a share of about ``1 / sqrt(2 (B - 1))``: take 20 blocks or more.
    Takes B + 1 spectra of ``(d, d)`` matrices.

    Args:
        blocks: statistics of B >= 2 disjoint blocks, each a random part of the images.
        reference: statistics of the set to compare with, taken as exact.

    Raises:
        ValueError: if there are fewer than two blocks, their sizes differ by more than one, one of two blocks
            has a single image, or the protocols or dimensions differ.
    """
    sizes = [block.n for block in blocks]
    if len(blocks) < 2 or max(sizes) - min(sizes) > 1 or sum(sizes) - max(sizes) < 2:
        raise ValueError(
            "expected at least 2 blocks of one size, give or take one image, and 2 images without any of "
            f"them, got {len(blocks)} of sizes {sorted(set(sizes))}; split the images with interleaved_blocks"
        )
    distance = distance_to(reference)
    everything = reduce(FeatureStats.merge, blocks)
    value = distance(everything)
    without = np.array([distance(_without(everything, block)) for block in blocks])
    count = len(blocks)
    variance = (count - 1) * without.var()
    return Jackknife(value, value - (count - 1) * (without.mean() - value), math.sqrt(variance))


def split_half(first: FeatureStats, second: FeatureStats, reference: FeatureStats) -> float:
    """Compute the Fréchet distance with its bias removed, ``2 F_N - mean F_{N/2}``.

    A bias ``C / N`` cancels exactly. For N >= 4 d this removes about 95 % of the bias; with fewer images it
    removes too much. The value may be below 0.

    Args:
        first: statistics of a random half of the images.
        second: statistics of the other half.
        reference: statistics of the set to compare with, taken as exact.

    Raises:
        ValueError: if the sizes of the halves differ by more than one, a half has fewer than two images, or
            the protocols or dimensions differ.
    """
    if abs(first.n - second.n) > 1 or min(first.n, second.n) < 2:
        raise ValueError(
            f"expected two halves of one size >= 2, give or take one image, got {first.n} and {second.n}; "
            "split the images with interleaved_blocks"
        )
    distance = distance_to(reference)
    return 2 * distance(first.merge(second)) - (distance(first) + distance(second)) / 2


def interleaved_blocks(features: np.ndarray, count: int, protocol: MeasurementProtocol) -> list[FeatureStats]:
    """Split features ``(n, d)`` by position into `count` blocks: block *b* holds the rows b, b + count, ...

    The position must say nothing about the image beyond what `count` mixes: shuffle images that are sorted.

    Raises:
        ValueError: if a block would have fewer than two rows, or a value is not finite.
    """
    if count < 1 or len(features) < 2 * count:
        raise ValueError(
            f"expected at least one block and two images per block, got {count} blocks for {len(features)} "
            "images; ask for fewer blocks"
        )
    return [FeatureStats.from_features(features[block::count], protocol) for block in range(count)]


def _without(everything: FeatureStats, block: FeatureStats) -> FeatureStats:
    """Return the statistics of all images but those of a block: the inverse of `FeatureStats.merge`."""
    n = everything.n - block.n
    step = block.mean - everything.mean
    scatter = (everything.n - 1) * everything.cov - (block.n - 1) * block.cov
    scatter -= (everything.n * block.n / n) * np.outer(step, step)
    return FeatureStats(n, everything.mean - (block.n / n) * step, scatter / (n - 1), everything.protocol)
