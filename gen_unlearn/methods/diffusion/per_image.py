"""Gradients of a denoiser's loss on single images, and the diagonal Fisher information made from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingModel, Draws, squared_error
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.loop import batches_of
from gen_unlearn.methods.per_sample import chosen_weights, per_sample_gradients
from gen_unlearn.repro import torch_generator

MICROBATCH = 8
"""Images whose gradients are held at a time."""


def draws_of(model: DenoisingModel, batch: Batch, *, seed: int, role: str, number: int, of: int) -> Draws:
    """Return one of several draws of timesteps and noise of every image, on the CPU.

    They depend on the image's id and not on its batch. The timestep of draw `number` is uniform over its
    share of the schedule, the `number`-th of `of` equal ones: all draws together cover all of it.
    """
    noise, timesteps = torch.empty(batch.inputs.shape), []
    for place, name in enumerate(batch.ids):
        generator = torch_generator(seed, "draws of image", role, number, name.tobytes())
        share = (number + torch.rand((), generator=generator, dtype=torch.float64).item()) / of
        timesteps.append(min(int(share * model.num_timesteps), model.num_timesteps - 1))
        noise[place] = torch.randn(noise[place].shape, generator=generator)
    return Draws(torch.tensor(timesteps, dtype=torch.int64), noise, batch.labels)


def image_gradients(
    model: DenoisingModel, batch: Batch, *, seed: int, role: str, draws: int, budget: Budget
) -> dict[str, Tensor]:
    """Return the gradient of each image's own loss, its mean over some draws, in evaluation mode.

    Args:
        model: stays as it is.
        batch: images on the CPU.
        seed: of timesteps and noise.
        role: what the draws are for; other roles draw others.
        draws: of each image, at least 1.
        budget: where every draw of an image is counted.

    Returns:
        Name of a parameter -> ``(batch, *shape of the parameter)``.
    """
    total: dict[str, Tensor] = {}
    for number in range(draws):
        budget.count(forward=len(batch.ids), backward=len(batch.ids))
        drawn = draws_of(model, batch, seed=seed, role=role, number=number, of=draws)
        packed = batch._replace(
            inputs=torch.cat([batch.inputs, drawn.noise], dim=1),
            labels=torch.stack([drawn.labels, drawn.timesteps], dim=1),
        )
        with sdpa_kernel(SDPBackend.MATH):
            found = per_sample_gradients(model, packed, _loss_of_packed)
        for name, gradient in found.items():
            share = gradient / draws
            total[name] = total[name] + share if name in total else share
    return total


def denoising_fisher(
    model: DenoisingModel, data: IndexedImages, *, seed: int, role: str, draws: int, budget: Budget
) -> dict[str, Tensor]:
    """Return the mean of squared gradients of single images, each a mean over some draws, not clipped.

    Args:
        model: stays as it is; evaluation mode.
        data: at least one image.
        seed: of timesteps and noise.
        role: what the draws are for.
        draws: of each image. The square of the mean of few draws is too large by its variance.
        budget: where every draw of an image is counted.

    Returns:
        Name of a parameter -> float64 of its shape, at least 0.

    Raises:
        ValueError: there is no image.
    """
    if not len(data):
        raise ValueError("expected images to take the Fisher information of, got none")
    sums = {n: torch.zeros_like(w, dtype=torch.float64) for n, w in chosen_weights(model).items()}
    for batch in batches_of(data, MICROBATCH):
        found = image_gradients(model, batch, seed=seed, role=role, draws=draws, budget=budget)
        for name, gradients in found.items():
            sums[name] += gradients.square().sum(0, dtype=torch.float64)
    return {name: total / len(data) for name, total in sums.items()}


def _loss_of_packed(model: nn.Module, packed: Batch) -> Tensor:
    """Return the loss of images with their noise as further channels, and labels with timesteps."""
    assert isinstance(model, DenoisingModel)
    images, noise = packed.inputs.chunk(2, dim=1)
    labels, timesteps = packed.labels.unbind(1)
    noisy = model.noised(images, noise, timesteps)
    return squared_error(model(noisy, timesteps, labels), noise).mean()
