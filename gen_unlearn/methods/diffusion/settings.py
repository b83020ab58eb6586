"""The settings that unlearning methods for diffusion models share: they count steps, not epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingLoss, DenoisingModel
from gen_unlearn.methods.loop import LoopSettings, Loss, Pass, Term


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings(LoopSettings):
    """How a method takes its steps on a denoiser.

    Attributes:
        steps: optimiser steps; with 0 the model stays as it is, to the bit.
        epochs: how often these steps are repeated, with other batches.
        label_dropout: probability of the null label on retained images, where the network has one.
        betas: decays of Adam's averages of the gradient and of its square, each from 0 to below 1.
        eps: what Adam adds to the root of the average square, above 0.
    """

    lr: float = 1e-4
    steps: int = 50
    epochs: int = 1
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    batch_forget: int = 128
    batch_retain: int = 128
    clip: float | None = 1.0
    label_dropout: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0:
            raise ValueError(f"expected steps of at least 0, got {self.steps}")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"expected label_dropout from 0 to below 1, got {self.label_dropout}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"expected betas from 0 to below 1, got {self.betas}")
        if not self.eps > 0:
            raise ValueError(f"expected eps above 0, got {self.eps}")

    def from_sums(self, pixels: int) -> Self:
        """Return these settings, published for losses that are sums over pixels, for means over pixels.

        Every gradient is smaller by `pixels`; so are the greatest norm, Adam's `eps` and what weight decay
        adds to a gradient then. Adam's learning rate and the decoupled weight decay of AdamW stay.

        Args:
            pixels: numbers of an image, channels included.

        Raises:
            ValueError: the optimiser is SGD, whose steps are as long as the gradients.
        """
        if self.optimizer == "sgd":
            raise ValueError("expected settings of adam or adamw, got sgd; convert its learning rate by hand")
        clip = None if self.clip is None else self.clip / pixels
        decay = self.weight_decay if self.optimizer == "adamw" else self.weight_decay / pixels
        return replace(self, clip=clip, eps=self.eps / pixels, weight_decay=decay)

    def drawn_forget(self, data: IndexedImages, loss: Loss, weight: float = 1.0) -> Term:
        """Return a term over `steps` batches of images to forget."""
        return Term(data, loss, self.batch_forget, weight, drawn=self.steps)

    def drawn_retain(self, data: IndexedImages, loss: Loss, weight: float = 1.0) -> Term:
        """Return a term over `steps` batches of retained images."""
        return Term(data, loss, self.batch_retain, weight, drawn=self.steps)

    def retain_loss(self, seed: int) -> DenoisingLoss:
        """Return the loss of retained images, with label dropout."""
        return DenoisingLoss(seed, "retain", self.label_dropout)

    def train(
        self,
        model: DenoisingModel,
        passes: Sequence[Pass],
        *,
        accelerator: Accelerator,
        seed: int,
        budget: Budget,
        after_step: Callable[[int, float], None] | None = None,
    ) -> None:
        """Train a model in place, as `LoopSettings.run`; with no steps it stays as it is."""
        if self.steps:
            self.run(
                model,
                lambda _: passes,
                accelerator=accelerator,
                seed=seed,
                budget=budget,
                after_step=after_step,
            )

    def _optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return super()._optimizer(parameters)
        kind = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        return kind(parameters, self.lr, self.betas, self.eps, self.weight_decay)
