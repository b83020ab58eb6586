"""Random labels for what is forgotten, the own labels for what is retained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import Batch, cross_entropy
from gen_unlearn.methods.loop import LoopSettings, Pass
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.random_targets import Relabel, Resample, random_targets
from gen_unlearn.methods.schedules import Schedule, scheduled
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import among

_MOST_STEPS = 2**32


@dataclass(frozen=True, kw_only=True)
class RandomLabels(LoopSettings):
    """Minimise ``CE(forget, random labels) + CE(retain)`` (Golatkar et al., arXiv 1911.04933).

    Attributes:
        relabel: which labels an image to forget may get: any, any but its own, or any class that has no image
            to forget.
        resample: when labels are drawn again; always the same for the same image, time and seed.
        schedule: order of the images to forget and the retained ones, see `gen_unlearn.methods.schedules`.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    lr: float = 0.013
    relabel: Relabel = "include_true"
    resample: Resample = "step"
    schedule: Schedule = "forget_then_retain"

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after `epochs` of the schedule."""
        student = copy_of(model, accelerator)
        passes = self.passes(data, seed)
        self.run(student, lambda _: passes, accelerator=accelerator, seed=seed, budget=budget)
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"lr": LogUniform(1e-4, 1e-1), "epochs": Choice((3, 5, 10))}

    def passes(self, data: UnlearnData, seed: int) -> Sequence[Pass]:
        """Return the passes of every epoch; the labels are drawn from the seed."""

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            labels = torch.from_numpy(self.targets(data, batch, seed)).to(batch.labels.device)
            return cross_entropy(network, batch._replace(labels=labels))

        return scheduled(self, self.schedule, data.forget, data.retain, loss)

    def targets(self, data: UnlearnData, batch: Batch, seed: int) -> np.ndarray:
        """Return the labels that a batch is trained with, int64 ``(batch,)``: its own for retained images."""
        times = {"step": batch.epoch * _MOST_STEPS + batch.step, "epoch": batch.epoch, "never": 0}
        own = batch.labels.cpu().numpy()
        drawn = random_targets(
            batch.ids,
            own,
            data.num_classes,
            self.relabel,
            seed=seed,
            time=times[self.resample],
            excluded=data.forgotten_classes,
        )
        return np.where(among(batch.ids, data.forgotten_ids), drawn, own)
