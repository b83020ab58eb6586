"""Gradient ascent on what is forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from accelerate import Accelerator
from torch import nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import cross_entropy
from gen_unlearn.methods.loop import LoopSettings
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.search_space import IntegerRange, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class GradientAscent(LoopSettings):
    """Minimise ``-CE(forget)`` (Graves et al., arXiv 2010.10981; Thudi et al., arXiv 2109.13398).

    The loss is not bounded: where it runs away, a lower `lr` or `clip` helps. It is taken in float32,
    whatever the precision of the network.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget"})
    deterministic: ClassVar[bool] = False
    lr: float = 1e-4
    epochs: int = 5

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after `epochs` of ascent."""
        student = copy_of(model, accelerator)
        forget = self.forget_term(data.forget, cross_entropy, -1.0)
        self.run(student, lambda _: [[forget]], accelerator=accelerator, seed=seed, budget=budget)
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"lr": LogUniform(1e-5, 1e-1), "epochs": IntegerRange(1, 10)}
