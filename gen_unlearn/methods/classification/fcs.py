"""FCS: uniform outputs, then contrast with the retained images, then repair by fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import Batch, cross_entropy, logits
from gen_unlearn.methods.loop import LoopSettings, Term, batch_of
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import derive_seed, torch_generator


@dataclass(frozen=True, kw_only=True)
class Fcs(LoopSettings):
    """Forget, contrast, repair: first place of the NeurIPS-2023 challenge (arXiv 2406.09073).

    The outputs on images to forget first become uniform. Then each epoch pushes their logits to have the same
    product with the logits of all retained images of a batch, and trains on the retained images. All three
    parts have a learning rate and an optimiser of their own, which starts anew in every epoch.

    Attributes:
        lr: of training on the retained images.
        weight_decay: of training on the retained images; the other parts have none.
        epochs: of contrast and repair.
        uniform_lr: of the first part.
        uniform_epochs: of the first part; 0 leaves it out.
        contrast_lr: falls by half a cosine over the epochs.
        temperature: what the products are divided by.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    lr: float = 4e-3
    weight_decay: float = 1e-2
    epochs: int = 8
    batch_forget: int = 256
    batch_retain: int = 256
    uniform_lr: float = 5e-3
    uniform_epochs: int = 1
    contrast_lr: float = 3e-4
    temperature: float = 1.15

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("uniform_lr", "contrast_lr", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} above 0, got {getattr(self, name)}")
        if self.uniform_epochs < 0:
            raise ValueError(f"expected uniform_epochs of at least 0, got {self.uniform_epochs}")
        if self.decay != "constant" or self.milestones:
            raise ValueError(
                "expected a constant lr, since each epoch has an optimiser of its own, "
                f"got decay {self.decay!r} and milestones {self.milestones}"
            )

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after all parts."""
        student = copy_of(model, accelerator)

        def take(settings: LoopSettings, term: Term, name: str, epoch: int) -> None:
            own = derive_seed(seed, "fcs", name, epoch)
            settings.run(student, lambda _: [[term]], accelerator=accelerator, seed=own, budget=budget)

        uniform = self.forget_term(data.forget, uniform_divergence)
        repair = self.retain_term(data.retain, cross_entropy)
        for epoch in range(self.uniform_epochs):
            take(replace(self, lr=self.uniform_lr, weight_decay=0.0, epochs=1), uniform, "uniform", epoch)
        for epoch in range(self.epochs):
            lr = self.contrast_lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
            contrast = self._contrast(data, seed, epoch, budget)
            take(replace(self, lr=lr, weight_decay=0.0, epochs=1), contrast, "contrast", epoch)
            take(replace(self, epochs=1), repair, "repair", epoch)
        return student

    def _contrast(self, data: UnlearnData, seed: int, epoch: int, budget: Budget) -> Term:
        """Return the term that compares each batch to forget with a batch of retained images."""
        order = torch.randperm(len(data.retain), generator=torch_generator(seed, "fcs others", epoch)).numpy()

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            rows = np.arange(batch.step * self.batch_retain, (batch.step + 1) * self.batch_retain)
            others = batch_of(data.retain, np.unique(order[rows % len(order)]))
            budget.count(forward=len(others.ids))
            with torch.no_grad():
                retained = logits(model, others.inputs.to(batch.inputs.device))
            return contrast_loss(logits(model, batch.inputs), retained, self.temperature)

        return self.forget_term(data.forget, loss)

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-4, 1e-1),
            "uniform_lr": LogUniform(1e-4, 1e-1),
            "contrast_lr": LogUniform(1e-5, 1e-2),
            "epochs": Choice((3, 5, 8)),
        }


def uniform_divergence(model: nn.Module, batch: Batch) -> Tensor:
    """Return ``KL(uniform || softmax(logits))``, the mean over the batch."""
    log_probabilities = F.log_softmax(logits(model, batch.inputs).float(), dim=1)
    return -log_probabilities.mean() - math.log(log_probabilities.shape[1])


def contrast_loss(forget: Tensor, retained: Tensor, temperature: float) -> Tensor:
    """Return the mean of ``-log softmax_j(z_i . z_j / temperature)`` over all pairs.

    It is least where the logits of an image to forget have the same product with those of all retained
    images, and then is the logarithm of their number.

    Args:
        forget: logits `z_i`, ``(images, classes)``.
        retained: logits `z_j`, ``(others, classes)``; no gradient goes into them.
        temperature: above 0.
    """
    products = forget.float() @ retained.detach().float().T / temperature
    return -F.log_softmax(products, dim=1).mean()
