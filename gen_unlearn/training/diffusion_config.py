"""The settings of the training of a denoiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

_AT_LEAST_ONE = (
    "images",
    "batch_size",
    "exemplar_refresh_steps",
    "gradient_accumulation_steps",
    "checkpoint_images",
    "checkpoints_total_limit",
)


@dataclass(frozen=True)
class TrainingConfig:
    """How a denoiser is trained.

    Attributes:
        images: images shown in all, rounded up to whole steps.
        batch_size: images of one step, over all processes and micro-batches.
        learning_rate: peak of AdamW's learning rate.
        warmup_images: images over which the learning rate rises linearly; it then falls to 0 by a cosine.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: the gradient is scaled down to this norm.
        ema_max_decay: greatest decay of the averaged weights, which are what is kept.
        ema_power: the decay after *k* steps is ``1 - (1 + k) ** -ema_power``, up to the greatest.
        exemplars_per_class: least and greatest number of exemplars per class and step.
        exemplar_refresh_steps: steps for which exemplars stay, encoded once; the fusion learns from them in
            all. With 1, every step has exemplars of its own.
        exemplar_dropout: probability that an image is denoised without exemplars.
        label_dropout: probability of the null label, where labels are used.
        horizontal_flip: mirror training images at random.
        reorientation: probability that a class is shown in a step under one of the eight orientations of the
            square, its exemplars with it. A turned class is a class of its own, so that the network learns to
            follow exemplars of classes that it never saw; 0 turns nothing.
        gradient_accumulation_steps: micro-batches of one step.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``, which needs a GPU.
        compile: compile the network with `torch.compile`, which rounds differently.
        checkpoint_images: images between two resume points.
        checkpoints_total_limit: how many of the newest resume points are kept.
        dataloader_workers: processes that decode images.
        log_with: tracker, such as ``"tensorboard"`` or ``"wandb"``; `None` for none.
    """

    images: int = 120_000
    batch_size: int = 120
    learning_rate: float = 1e-3
    warmup_images: int = 6_000
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_max_decay: float = 0.9999
    ema_power: float = 0.75
    exemplars_per_class: tuple[int, int] = (8, 32)
    exemplar_refresh_steps: int = 1
    exemplar_dropout: float = 0.1
    label_dropout: float = 0.1
    horizontal_flip: bool = False
    reorientation: float = 0.0
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    checkpoint_images: int = 60_000
    checkpoints_total_limit: int = 1
    dataloader_workers: int = 0
    log_with: str | None = None

    def __post_init__(self) -> None:
        smallest, largest = self.exemplars_per_class
        if not 1 <= smallest <= largest:
            raise ValueError(
                f"exemplars_per_class must be [least, greatest] from 1 up, got {[smallest, largest]}"
            )
        for name in _AT_LEAST_ONE:
            if self.__dict__[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {self.__dict__[name]}")
        if not 0 <= self.reorientation <= 1:
            raise ValueError(f"reorientation must be in [0, 1], got {self.reorientation}")
        if self.reorientation and self.exemplar_refresh_steps > 1:
            raise ValueError(
                f"expected exemplar_refresh_steps 1 with reorientation, which turns exemplars in every step, "
                f"got {self.exemplar_refresh_steps}; set one of the two to its default"
            )
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        for name in ("warmup_images", "weight_decay", "max_grad_norm", "dataloader_workers"):
            if self.__dict__[name] < 0:
                raise ValueError(f"{name} must be at least 0, got {self.__dict__[name]}")
        for name in ("exemplar_dropout", "label_dropout"):
            if not 0 <= self.__dict__[name] < 1:
                raise ValueError(f"{name} must be in [0, 1), got {self.__dict__[name]}")

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return math.ceil(self.images / self.batch_size)
