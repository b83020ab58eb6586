"""A tiny frozen denoiser, LoRA adapters of it, and records with pixels, that tests share."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from small_ensembles import STEPS, in_order

from gen_unlearn.adapters.family import FitJob
from gen_unlearn.adapters.lora import LoraAdapters
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.records import Records
from gen_unlearn.models.frozen_denoiser import FrozenDenoiser
from gen_unlearn.repro import digest_state, image_ids

CLASSES = 3
SIZE = 8


def tiny_denoiser(
    classes: int = CLASSES, prediction_type: str = "epsilon", channels: tuple[int, ...] = (8, 16)
) -> FrozenDenoiser:
    """Make a denoiser of grey 8x8 images with fresh weights, the same every time.

    Args:
        classes: that it knows, besides the null class; it is unconditional for 0.
        prediction_type: of the noise schedule.
        channels: of each resolution; the lowest of several has attention.
    """
    attention = len(channels) > 1
    plain = len(channels) - attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet2DModel(
            sample_size=SIZE,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=channels,
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * attention,
            up_block_types=("AttnUpBlock2D",) * attention + ("UpBlock2D",) * plain,
            add_attention=attention,
            attention_head_dim=8,
            norm_num_groups=4,
            num_class_embeds=classes + 1 if classes else None,
        )
    schedule = DDPMScheduler(num_train_timesteps=100, prediction_type=prediction_type)
    return FrozenDenoiser(network, schedule, classes)


@cache
def shared_denoiser(
    classes: int = CLASSES, prediction_type: str = "epsilon", channels: tuple[int, ...] = (8, 16)
) -> FrozenDenoiser:
    """Return that denoiser, made once in each process; nobody may change it."""
    return tiny_denoiser(classes, prediction_type, channels)


def tiny_lora(
    classes: int = CLASSES,
    prediction_type: str = "epsilon",
    channels: tuple[int, ...] = (8, 16),
    **settings: Any,
) -> LoraAdapters:
    """Make a family of small adapters of the tiny denoiser; it can be sent to other processes.

    Args:
        classes: of the denoiser.
        prediction_type: of its noise schedule.
        channels: of the denoiser.
        settings: fields of `LoraConfig` besides the small ones here.
    """
    small = {"rank": 2, "alpha": 4.0, "targets": ("to_q", "to_v", "conv1"), "epochs": 2, "batch_size": 4}
    make = partial(shared_denoiser, classes, prediction_type, channels)
    config = LoraConfig(**(small | settings))  # type: ignore[arg-type]
    return LoraAdapters(config, digest_state(make().network.state_dict()), (SIZE, SIZE, 1), make)


def pixel_records(count: int, seed: int = 0, classes: int = CLASSES, twice: int = 0) -> Records:
    """Make records of images with a bright stripe where their class has it; codes are means of blocks.

    Args:
        count: images.
        seed: of the draws.
        classes: how many.
        twice: so many of the images are there a second time, with the next class.
    """
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, count)
    pixels = draw.integers(0, 120, (count, SIZE, SIZE, 1))
    rows = 1 + 2 * labels
    pixels[np.arange(count), rows] += 120
    images = pixels.astype(np.uint8)
    blocks = images.reshape(count, 4, 2, 2, 4).mean(axis=(2, 4)).reshape(count, -1)
    codes = np.rint(STEPS * (blocks - 90) / 40).astype(np.int16)
    records = Records(codes, labels, image_ids(images), images)
    again = np.append(np.arange(count), np.arange(twice))
    labels = np.append(labels, (labels[:twice] + 1) % classes)
    return in_order(Records(records.codes[again], labels, records.ids[again], images[again]))


def pixel_jobs(*sizes: int, first: int = 7) -> list[FitJob]:
    """Make adapters with so many members each; the adapters are numbered from `first` on."""
    return [FitJob(first + place, pixel_records(size, seed=place)) for place, size in enumerate(sizes)]
