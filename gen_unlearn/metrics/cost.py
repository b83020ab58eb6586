"""What sampling costs, as a ratio of two pipelines timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.pipelines.sampling import GeneratorPipeline, sample_images
from gen_unlearn.pipelines.sampling_config import SamplingConfig


def sampling_overhead(
    pipeline: GeneratorPipeline,
    reference: GeneratorPipeline,
    labels: Sequence[int],
    config: SamplingConfig,
    repeats: int = 7,
) -> Estimate:
    """Estimate the seconds per image of `pipeline` over those of `reference`, with the same sampler.

    The two take turns, so that a machine whose speed drifts slows both.

    Args:
        pipeline: what is measured.
        reference: what it is compared with.
        labels: class of each image; all are sampled in one batch, numbered within their class.
        config: sampler, steps and guidance.
        repeats: timed pairs, after one that is not counted.

    Returns:
        The median ratio, with a standard error from the spread of the ratios.
    """
    one_batch = replace(config, batch_size=len(labels))
    indices = [labels[:place].count(label) for place, label in enumerate(labels)]

    def seconds(generator: GeneratorPipeline) -> float:
        return _seconds(lambda: sample_images(generator, labels, indices, one_batch, description="timing"))

    seconds(pipeline)
    seconds(reference)
    return median_ratio([(seconds(pipeline), seconds(reference)) for _ in range(repeats)])


def median_ratio(pairs: Sequence[tuple[float, float]]) -> Estimate:
    """Return the median ratio of timed pairs; error ``1.2533 * 1.4826 * MAD / sqrt(n)`` (normal case)."""
    ratios = np.array([first / second for first, second in pairs])
    median = float(np.median(ratios))
    spread = 1.4826 * float(np.median(np.abs(ratios - median)))
    return Estimate(median, 1.2533 * spread / np.sqrt(len(ratios)))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
