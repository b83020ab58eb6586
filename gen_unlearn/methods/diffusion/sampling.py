"""Samples of a denoiser itself, for methods that read no retained image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDIMScheduler

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.methods.per_sample import evaluation_mode
from gen_unlearn.pixels import to_uint8
from gen_unlearn.repro import image_ids, torch_generator


def sample_images(
    model: DenoisingModel,
    labels: np.ndarray,
    class_names: Sequence[str],
    image_shape: tuple[int, int, int],
    *,
    role: str,
    seed: int,
    budget: Budget,
    steps: int = 50,
    batch_size: int = 128,
) -> IndexedImages:
    """Sample one image for each label with DDIM (arXiv 2010.02502), without noise and without guidance.

    Args:
        model: in evaluation mode while it samples; stays as it is.
        labels: int64 ``(images,)``.
        class_names: of the model's classes.
        image_shape: ``(height, width, channels)``.
        role: what the samples are for; other roles start from other noise.
        seed: of the noise that they start from; image i depends on nothing else but its label.
        budget: where every step of every image is counted, forward.
        steps: of the sampler, at most the length of the noise schedule.
        batch_size: images at a time.

    Returns:
        The samples as stored images, uint8.
    """
    device = next(model.parameters()).device
    sampler = DDIMScheduler.from_config(model.noise.config, prediction_type="epsilon", set_alpha_to_one=True)
    sampler.set_timesteps(steps)
    height, width, channels = image_shape
    found = np.empty((len(labels), *image_shape), dtype=np.uint8)
    with torch.no_grad(), evaluation_mode(model):
        for start in range(0, len(labels), batch_size):
            own = torch.from_numpy(labels[start : start + batch_size]).to(device)
            rows = range(start, start + len(own))
            generators = [torch_generator(seed, "samples", role, row) for row in rows]
            drawn = torch.stack([torch.randn(channels, height, width, generator=g) for g in generators])
            samples = drawn.to(device)
            for timestep in sampler.timesteps:
                budget.count(forward=len(own))
                noise = model(samples, timestep.to(device).expand(len(own)), own)
                samples = sampler.step(noise, timestep, samples, use_clipped_model_output=True).prev_sample
            found[rows.start : rows.stop] = to_uint8(samples)
    names = tuple(f"samples/{role}/{row}" for row in range(len(labels)))
    return IndexedImages(found, labels, image_ids(found), tuple(class_names), names)
