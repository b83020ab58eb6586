"""Fine-tuning on what is retained."""

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
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class FineTune(LoopSettings):
    """Train on what is retained, and rely on catastrophic forgetting (Golatkar et al., arXiv 1911.04933)."""

    needs: ClassVar[frozenset[Part]] = frozenset({"retain"})
    deterministic: ClassVar[bool] = False

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after `epochs` on the retained images."""
        student = copy_of(model, accelerator)
        retain = self.retain_term(data.retain, cross_entropy)
        self.run(student, lambda _: [[retain]], accelerator=accelerator, seed=seed, budget=budget)
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"lr": LogUniform(1e-3, 1e-1), "epochs": Choice((3, 5, 10))}
