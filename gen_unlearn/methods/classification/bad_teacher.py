"""Bad Teacher: learn from a network that knows nothing on what is forgotten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages, unique_ids
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import Batch, Teacher, kd_loss, logits
from gen_unlearn.methods.loop import LoopSettings, Pass
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.reinitialise import reinit
from gen_unlearn.methods.schedules import Schedule, scheduled
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import among, keyed_order


@dataclass(frozen=True, kw_only=True)
class BadTeacher(LoopSettings):
    """Minimise ``KD(bad teacher; forget) + KD(original; some of retain)`` (arXiv 2205.08096).

    The bad teacher has the structure of the original and fresh weights. Both teachers are frozen, in
    evaluation mode; the divergence goes from teacher to student, the mean over the batch.

    Attributes:
        retain_fraction: share of the retained images that are used, chosen by the seed.
        temperature: of KD.
        schedule: order of the images to forget and the retained ones, see `gen_unlearn.methods.schedules`;
            published is ``"mixed"``.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    lr: float = 1e-4
    epochs: int = 1
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    batch_forget: int = 256
    batch_retain: int = 256
    retain_fraction: float = 0.3
    temperature: float = 1.0
    schedule: Schedule = "mixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.retain_fraction <= 1:
            raise ValueError(f"expected retain_fraction above 0 and up to 1, got {self.retain_fraction}")
        if not self.temperature > 0:
            raise ValueError(f"expected temperature above 0, got {self.temperature}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after `epochs`."""
        student, fresh = copy_of(model, accelerator), copy_of(model, accelerator)
        reinit(fresh, [""], seed)
        good, bad = Teacher(student, budget), Teacher(fresh, budget)
        passes = self._passes(good, bad, data.forget, self.chosen(data.retain, seed))
        self.run(student, lambda _: passes, accelerator=accelerator, seed=seed, budget=budget)
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-5, 1e-2),
            "retain_fraction": Choice((0.1, 0.3, 1.0)),
            "temperature": Choice((1.0, 4.0)),
            "epochs": Choice((1, 2, 5)),
        }

    def chosen(self, retain: IndexedImages, seed: int) -> IndexedImages:
        """Return the retained images that are used: the first of an order that the seed decides."""
        count = max(1, math.floor(self.retain_fraction * len(retain)))
        return retain.select(np.sort(keyed_order(retain.ids, "bad teacher", seed)[:count]))

    def _passes(
        self, good: Teacher, bad: Teacher, forget: IndexedImages, retain: IndexedImages
    ) -> Sequence[Pass]:
        gone = unique_ids(forget.ids)

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            student = logits(network, batch.inputs)
            forgotten = among(batch.ids, gone)
            target = torch.empty_like(student)
            for teacher, theirs in ((bad, forgotten), (good, ~forgotten)):
                if theirs.any():
                    rows = torch.from_numpy(np.flatnonzero(theirs)).to(batch.inputs.device)
                    target[rows] = teacher(batch.inputs[rows]).to(target.dtype)
            return kd_loss(teacher=target, student=student, temperature=self.temperature)

        return scheduled(self, self.schedule, forget, retain, loss)
