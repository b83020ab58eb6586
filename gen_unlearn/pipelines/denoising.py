"""The denoising loop that all pipelines share, and the samplers that a recipe can name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from gen_unlearn.pipelines.sampling_config import Sampler

Generators = torch.Generator | Sequence[torch.Generator] | None
StepCallback = Callable[[DiffusionPipeline, int, int, dict[str, Tensor]], dict[str, Tensor]]
NoisePredictor = Callable[[Tensor, Tensor], Tensor]
"""Map noisy images ``(batch, channels, height, width)`` and a timestep ``()`` to the network's prediction."""


def build_sampler(name: Sampler, training: DDPMScheduler) -> SchedulerMixin:
    """Build the scheduler that samples from a model trained with `training`.

    DPM-Solver++ clips the half log signal-to-noise ratio at -5.1: without it, it diverges on a
    squared-cosine schedule, which ends in almost pure noise.
    """
    if name == "ddpm":
        return DDPMScheduler.from_config(training.config)
    if name == "ddim":
        return DDIMScheduler.from_config(training.config, set_alpha_to_one=True)
    if name == "dpm-solver++":
        return DPMSolverMultistepScheduler.from_config(
            training.config, algorithm_type="dpmsolver++", lambda_min_clipped=-5.1
        )
    raise ValueError(f"expected a sampler 'ddpm', 'ddim' or 'dpm-solver++', got {name!r}")


@torch.no_grad()
def denoise(
    pipeline: DiffusionPipeline,
    predict_noise: NoisePredictor,
    shape: tuple[int, int, int, int],
    *,
    num_inference_steps: int,
    generator: Generators,
    eta: float,
    latents: Tensor | None,
    callback_on_step_end: StepCallback | None,
) -> Tensor:
    """Turn noise into samples with the pipeline's scheduler.

    The scheduler reads its timesteps on the host and the network reads them on the device, so that no step
    waits for the device.

    Args:
        pipeline: owner of the scheduler, the network's device and the progress bar.
        predict_noise: maps ``(batch, channels, height, width)`` samples and a timestep to a prediction.
        shape: ``(batch, channels, height, width)``.
        num_inference_steps: denoising steps.
        generator: one for all, or one for each image, which makes image *i* independent of the batch.
        eta: weight of the noise that DDIM adds; other schedulers ignore it.
        latents: noise to start from, drawn from `generator` if `None`.
        callback_on_step_end: called as in every diffusers pipeline; may replace ``latents``.

    Returns:
        Samples in about [-1, 1], not clamped.
    """
    scheduler, network = pipeline.scheduler, pipeline.unet
    if isinstance(generator, Sequence) and len(generator) != shape[0]:
        raise ValueError(f"expected one generator or {shape[0]}, one for each image, got {len(generator)}")
    if latents is not None and tuple(latents.shape) != shape:
        raise ValueError(f"expected latents of shape {shape}, got {tuple(latents.shape)}")
    generators = list(generator) if isinstance(generator, Sequence) else generator
    if latents is None:
        latents = randn_tensor(shape, generator=generators, device=network.device, dtype=network.dtype)
    scheduler.set_timesteps(num_inference_steps)
    samples = latents.to(network.device, network.dtype) * scheduler.init_noise_sigma
    step_options = _step_options(scheduler, generators, eta)
    on_device = scheduler.timesteps.to(network.device)
    for index, timestep in enumerate(pipeline.progress_bar(scheduler.timesteps)):
        prediction = predict_noise(scheduler.scale_model_input(samples, timestep), on_device[index])
        samples = scheduler.step(prediction, timestep, samples, **step_options).prev_sample
        if callback_on_step_end is not None:
            replaced = callback_on_step_end(pipeline, index, int(timestep), {"latents": samples})
            samples = replaced.get("latents", samples)
    return samples


def require_one_image_per_label(noisy: Tensor, labels: int) -> None:
    """Raise a ValueError unless `noisy` holds as many images as a predictor was made for."""
    if len(noisy) != labels:
        raise ValueError(
            f"expected {labels} noisy images, one for each class label of this predictor, got {len(noisy)}; "
            "make a predictor for each batch"
        )


def _step_options(scheduler: SchedulerMixin, generator: Generators, eta: float) -> dict[str, Any]:
    """Select the options that this scheduler's `step` takes.

    Where DDIM clips the predicted image, it also recomputes the noise from it: otherwise each clipped step
    leaves more variance than the schedule says.
    """
    accepted = inspect.signature(scheduler.step).parameters
    options = {"generator": generator, "eta": eta, "use_clipped_model_output": True}
    return {name: value for name, value in options.items() if name in accepted}
