"""What loops written by hand share: images as tensors on the device, an optimiser, a step."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen_unlearn.methods.loop import LoopSettings


class Images(NamedTuple):
    """Float images in [-1, 1] and int64 labels on the device; `images[rows]` are those of a batch."""

    inputs: Tensor
    labels: Tensor

    def shuffled(self, size: int) -> tuple[Tensor, ...]:
        """Return the rows of all batches of an epoch."""
        return torch.randperm(len(self.inputs), device=self.inputs.device).split(size)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of some rows."""
        return self.inputs[rows], self.labels[rows]


class Request(NamedTuple):
    """The parts of an unlearning request."""

    forget: Images
    retain: Images
    heldout: Images


def optimizer_of(network: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    """Return the optimiser of the weights that are trained."""
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    if settings.optimizer == "adam":
        return torch.optim.Adam(trained, settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        trained, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take a step down a loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train_on(network: nn.Module, images: Images, size: int, settings: LoopSettings) -> None:
    """Train by cross-entropy."""
    optimizer = optimizer_of(network, settings)
    for _ in range(settings.epochs):
        for rows in images.shuffled(size):
            inputs, labels = images.batch(rows)
            step(optimizer, F.cross_entropy(network(inputs), labels))
