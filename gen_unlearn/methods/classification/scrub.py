"""SCRUB: a student that disobeys its teacher on what is forgotten and obeys it elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import Batch, Distance, Teacher, kd_loss, logits
from gen_unlearn.methods.loop import LoopSettings, Pass
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.search_space import Choice, IntegerRange, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class Scrub(LoopSettings):
    """Ascend ``KD(forget)``, then descend ``gamma CE(retain) + alpha KD(retain)`` (arXiv 2302.09880).

    KD is the distance to a frozen copy of the original in evaluation mode, see
    `gen_unlearn.methods.logits.kd_loss`. At the original it has no gradient: the first ascent does nothing
    until a descent has moved the student, and small learning rates forget nothing. The defaults are the large
    preset of the publication; the small one is ``gamma=1, alpha=0.5, msteps=3``.

    Attributes:
        gamma: weight of the labels of retained images.
        alpha: weight of the teacher on retained images.
        temperature: of KD.
        msteps: first epochs, counted from 1, that ascend on the images to forget.
        first_phase: what an epoch begins with: the descent (``"min"``) or the ascent (``"max"``).
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    lr: float = 5e-4
    epochs: int = 3
    weight_decay: float = 5e-4
    milestones: tuple[int, ...] = (3, 5, 9)
    batch_forget: int = 32
    batch_retain: int = 128
    gamma: float = 0.99
    alpha: float = 0.001
    temperature: float = 4.0
    msteps: int = 2
    first_phase: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "alpha", "msteps"):
            if getattr(self, name) < 0:
                raise ValueError(f"expected {name} of at least 0, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"expected temperature above 0, got {self.temperature}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after `epochs`."""
        student = copy_of(model, accelerator)
        self.scrub(student, data, accelerator=accelerator, seed=seed, budget=budget)
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-4, 3e-1),
            "alpha": LogUniform(1e-3, 1.0),
            "temperature": Choice((1.0, 2.0, 4.0)),
            "msteps": IntegerRange(1, 5),
            "epochs": Choice((3, 5, 10)),
        }

    def scrub(
        self,
        student: nn.Module,
        data: UnlearnData,
        *,
        accelerator: Accelerator,
        seed: int,
        budget: Budget,
        after_epoch: Callable[[int], None] | None = None,
    ) -> None:
        """Train a copy of the original in place; see `LoopSettings.run`.

        Raises:
            ValueError: no ascent ever had a gradient, since the student was the teacher all the while.
        """
        teacher = Teacher(student, budget)
        distance = Distance(teacher, self.temperature)
        self.run(
            student,
            self.passes(teacher, distance, data),
            accelerator=accelerator,
            seed=seed,
            budget=budget,
            after_epoch=after_epoch,
        )
        distance.check("begin with the descent (first_phase min), or raise msteps or lr")

    def passes(
        self, teacher: Teacher, distance: Distance, data: UnlearnData
    ) -> Callable[[int], Sequence[Pass]]:
        """Return what gives the passes of an epoch, counted from 0.

        Args:
            teacher: the original.
            distance: to it, which the ascent enlarges.
            data: the request.
        """

        def retained(network: nn.Module, batch: Batch) -> Tensor:
            found = logits(network, batch.inputs)
            loss = self.gamma * F.cross_entropy(found.float(), batch.labels)
            if not self.alpha:
                return loss
            target = teacher(batch.inputs)
            return loss + self.alpha * kd_loss(teacher=target, student=found, temperature=self.temperature)

        ascent = [self.forget_term(data.forget, distance, -1.0)]
        descent = [self.retain_term(data.retain, retained)]
        both = [descent, ascent] if self.first_phase == "min" else [ascent, descent]
        return lambda epoch: both if epoch < self.msteps else [descent]
