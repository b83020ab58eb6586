"""The settings of the training of a classifier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ClassifierTrainingConfig:
    """How a classifier is trained.

    Attributes:
        images: images shown in all, rounded up to whole steps; exemplars are not counted.
        batch_size: images of one step, over all processes.
        optimizer: ``"adamw"``, or ``"sgd"`` with momentum 0.9 and Nesterov's step.
        learning_rate: peak of the learning rate.
        warmup_images: images over which it rises linearly; it then falls to 0 by a cosine.
        weight_decay: decoupled for AdamW, added to the gradient for SGD.
        max_grad_norm: the gradient is scaled down to this norm.
        vote: who votes in training: ``"prototypes"``, the mean key of each class, or ``"exemplars"``.
        exemplars: what votes in a step: ``"batch"``, the other images of the step, which costs nothing, or
            ``"sampled"``, further images of every class, as in the paper.
        support_per_class: least and greatest number of sampled exemplars per class and step.
        shift: greatest random shift of images per axis, in pixels.
        horizontal_flip: mirror images at random.
        encoder_run: folder of a trained parametric run whose encoder is taken over and frozen, so that only
            the fusion is trained; `None` trains everything.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``.
        checkpoint_images: images between two resume points.
        checkpoints_total_limit: how many of the newest resume points are kept.
        dataloader_workers: processes that decode images.
        log_with: tracker, such as ``"tensorboard"`` or ``"wandb"``; `None` for none.
    """

    images: int = 60_000
    batch_size: int = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 3e-3
    warmup_images: int = 3_000
    weight_decay: float = 0.05
    max_grad_norm: float = 5.0
    vote: Literal["prototypes", "exemplars"] = "prototypes"
    exemplars: Literal["batch", "sampled"] = "batch"
    support_per_class: tuple[int, int] = (1, 32)
    shift: int = 0
    horizontal_flip: bool = False
    encoder_run: str | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    checkpoint_images: int = 500_000
    checkpoints_total_limit: int = 1
    dataloader_workers: int = 0
    log_with: str | None = None

    def __post_init__(self) -> None:
        smallest, largest = self.support_per_class
        if not 1 <= smallest <= largest:
            raise ValueError(
                f"support_per_class must be [least, greatest] from 1 up, got {[smallest, largest]}"
            )
        for name in ("images", "batch_size", "checkpoint_images", "checkpoints_total_limit"):
            if self.__dict__[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {self.__dict__[name]}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        for name in ("warmup_images", "weight_decay", "max_grad_norm", "shift", "dataloader_workers"):
            if self.__dict__[name] < 0:
                raise ValueError(f"{name} must be at least 0, got {self.__dict__[name]}")

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return math.ceil(self.images / self.batch_size)
