"""The settings that unlearning methods for diffusion models share: they count steps, not epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from accelerate import Accelerator

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
    """

    lr: float = 1e-4
    steps: int = 50
    epochs: int = 1
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    batch_forget: int = 128
    batch_retain: int = 128
    clip: float | None = 1.0
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0:
            raise ValueError(f"expected steps of at least 0, got {self.steps}")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"expected label_dropout from 0 to below 1, got {self.label_dropout}")

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
