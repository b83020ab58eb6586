"""What a deletion gives away to who has the denoiser before and after it: the difference points at images.

arXiv 2505.24379 extrapolates from a language model after a deletion through the one before it. For a
diffusion model that becomes ``eps_after + w (eps_before - eps_after)``, with the model after the deletion at
``w = 0``, the one before it at 1, and what only the latter knew exaggerated above 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from gen_unlearn.metrics.copying import nearest_images
from gen_unlearn.pipelines.denoising import NoisePredictor, denoise
from gen_unlearn.repro import torch_generator

WEIGHTS = (0.0, 1.0, 2.0, 3.0)
"""The weights that are tried; the last go beyond the model before the deletion."""


def extrapolated(before: NoisePredictor, after: NoisePredictor, weights: Tensor) -> NoisePredictor:
    """Return a predictor that goes through the one after a deletion and the one before it.

    Args:
        before: predicts as before the deletion.
        after: predicts as after it, for the same images.
        weights: 0 is after and 1 before, of each image, ``(n,)``.
    """
    scales = weights.view(-1, 1, 1, 1)

    def predict(samples: Tensor, timestep: Tensor) -> Tensor:
        now = after(samples, timestep)
        return now + scales.to(now) * (before(samples, timestep) - now)

    return predict


def draw_between(
    pipeline: DiffusionPipeline,
    before: NoisePredictor,
    after: NoisePredictor,
    shape: tuple[int, int, int],
    *key: int | str | bytes,
    draws: int = 16,
    steps: int = 25,
    weights: Sequence[float] = WEIGHTS,
) -> Tensor:
    """Sample with each weight, from the same noise.

    Args:
        pipeline: owner of scheduler and network.
        before: see `extrapolated`; for ``len(weights) * draws`` images.
        after: likewise.
        shape: of a sample, ``(channels, height, width)``.
        key: what the noise is derived from.
        draws: samples of each weight.
        steps: denoising steps.
        weights: see `extrapolated`.

    Returns:
        ``(len(weights) * draws, channels, height, width)``, those of the first weight first.
    """
    generators = [
        torch_generator("before and after", *key, number) for _ in weights for number in range(draws)
    ]
    settings: dict[str, Any] = {"eta": 0.0, "latents": None, "callback_on_step_end": None}
    return denoise(
        pipeline,
        extrapolated(before, after, torch.tensor(weights).repeat_interleave(draws)),
        (len(generators), *shape),
        num_inference_steps=steps,
        generator=generators,
        **settings,
    )


def nearer_share(image: np.ndarray, controls: np.ndarray, samples: np.ndarray) -> float:
    """Return the share of control images that lie further from their nearest sample than an image does.

    Ties count half. 0.5 is what an image gives that is one of the controls' kind; 1 that it was found.

    Args:
        image: uint8 ``(height, width, channels)``.
        controls: uint8 ``(n, height, width, channels)``, at least one.
        samples: uint8 ``(m, height, width, channels)``.
    """
    distances = nearest_images(np.concatenate([image[np.newaxis], controls]), samples)[0][:, 0]
    own, others = distances[0], distances[1:]
    return float((others > own).mean() + 0.5 * (others == own).mean())
