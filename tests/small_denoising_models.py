"""Tiny denoising models with fresh weights, for the tests of all unlearning methods for diffusion models."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from diffusers import DDPMScheduler, UNet2DModel
from small_requests import CLASSES, SIDE
from torch import Tensor

from gen_unlearn.data import IndexedImages
from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.repro import derive_seed
from gen_unlearn.training.batches import rows_of_step


def small_denoising_model(
    classes: int = CLASSES, prediction_type: str = "epsilon", seed: int = 0
) -> DenoisingModel:
    """Make a denoiser of grey 4 x 4 images, 1000 steps of noise, the same weights every time.

    Args:
        classes: that it embeds, besides the null label; it is unconditional for 0.
        prediction_type: what the network predicts.
        seed: of its weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet2DModel(
            sample_size=SIDE,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            add_attention=False,
            norm_num_groups=4,
            num_class_embeds=classes + 1 if classes else None,
        )
    noise = DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type
    )
    return DenoisingModel(network, noise, CLASSES).eval()


def first_batch(data: IndexedImages, size: int, seed: int, place: int = 0) -> Batch:
    """Return what the term at a place of the first pass sees in its first step."""
    rows = rows_of_step(len(data), size, 0, derive_seed(seed, "order", 0, 0, place))
    return batch_of(data, rows)


def gradients_by_hand(model: DenoisingModel, value: Callable[[DenoisingModel], Tensor]) -> Tensor:
    """Return the gradient of a function of a copy of a model by all weights, one after another, float64."""
    student = copy.deepcopy(model).train()
    value(student).backward()
    return torch.cat(
        [
            torch.zeros(p.numel(), dtype=torch.float64) if p.grad is None else p.grad.double().reshape(-1)
            for p in student.parameters()
        ]
    )
