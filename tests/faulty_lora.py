"""LoRA adapters with one fault each in how a stack is trained; tests see to it that each is found out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gen_unlearn.adapters import lora
from gen_unlearn.adapters.family import AdapterState, FitJob, HeadShape
from gen_unlearn.adapters.lora import LoraAdapters
from gen_unlearn.adapters.one_thread import one_thread
from gen_unlearn.adapters.stacks import EMPTY, fit_in_stacks
from gen_unlearn.models.stacked_lora import lora_layers


@dataclass(frozen=True)
class FaultyLora(LoraAdapters):
    """Adapters that are trained in stacks of another kind, which is given by its name."""

    kind: str = "_Stack"

    def fit(self, jobs: Sequence[FitJob], shape: HeadShape, seed: int) -> list[AdapterState]:  # noqa: ARG002
        denoiser = self.denoiser()
        layers = lora_layers(denoiser.network, self.config.targets, denoiser.adaptable)
        with one_thread():
            return fit_in_stacks(
                jobs,
                self.config.stack,
                lambda some: KINDS[self.kind](self.config, denoiser, layers, some, seed).train(),
            )


def with_stacks(family: LoraAdapters, kind: type[lora._Stack]) -> FaultyLora:
    """Return the same family, trained in stacks of another kind."""
    return FaultyLora(family.config, family.backbone, family.image_shape, family.denoiser, kind.__name__)


class GlobalNoise(lora._Stack):
    """Noise from the global stream."""

    def _rows(self, step: int) -> lora._Rows:
        rows = super()._rows(step)
        return rows._replace(noise=torch.randn(rows.noise.shape))


class GlobalShuffle(lora._Stack):
    """Batches in an order from the global stream."""

    def train(self) -> list[AdapterState]:
        order = torch.randperm(len(self.plan.rows)).numpy()
        self.plan = replace(self.plan, rows=self.plan.rows[order])
        return super().train()


class GlobalClip(lora._Stack):
    """One norm for the gradients of the whole stack."""

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        for gradient in gradients:
            gradient.mul_((0.01 / norm).clamp(max=1))


class MeanOverTheBatch(lora._Stack):
    """What batch normalisation does in training: all rows of the stack have one mean."""

    def _rows(self, step: int) -> lora._Rows:
        rows = super()._rows(step)
        return rows._replace(clean=rows.clean - rows.clean.mean(dim=0))


class OrderOfPositions(lora._Stack):
    """Members one after the other, as they come."""

    def train(self) -> list[AdapterState]:
        rows = self.plan.rows.copy()
        for place, job in enumerate(self.jobs):
            real = rows[:, place] != EMPTY
            column = rows[:, place]
            column[real] = np.arange(real.sum()) % len(job.members)
        self.plan = replace(self.plan, rows=rows)
        return super().train()


KINDS = {
    kind.__name__: kind
    for kind in (lora._Stack, GlobalNoise, GlobalShuffle, GlobalClip, MeanOverTheBatch, OrderOfPositions)
}
