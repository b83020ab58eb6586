"""NegGrad+: descent on what is retained and ascent on what is forgotten, in the same step."""

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
from gen_unlearn.methods.search_space import Choice, LogitUniform, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class NegGradPlus(LoopSettings):
    """Minimise ``alpha CE(retain) - (1 - alpha) CE(forget)`` (Kurmanji et al., arXiv 2302.09880).

    Attributes:
        alpha: weight of the retained images; 1 is fine-tuning.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    alpha: float = 0.95
    epochs: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"expected alpha from 0 to 1, got {self.alpha}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model; the shorter of the two parts is gone through again and again."""
        student = copy_of(model, accelerator)
        both = [
            self.retain_term(data.retain, cross_entropy, self.alpha),
            self.forget_term(data.forget, cross_entropy, self.alpha - 1),
        ]
        self.run(student, lambda _: [both], accelerator=accelerator, seed=seed, budget=budget)
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-4, 1e-1),
            "alpha": LogitUniform(0.5, 0.9999),
            "epochs": Choice((3, 5, 10)),
        }
