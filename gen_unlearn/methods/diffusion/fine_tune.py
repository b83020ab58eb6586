"""Fine-tuning a denoiser on what is retained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from accelerate import Accelerator
from torch import nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import copy_of_denoiser
from gen_unlearn.methods.diffusion.settings import DiffusionSettings
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class FineTuneDenoiser(DiffusionSettings):
    """Train on what is retained, and rely on catastrophic forgetting."""

    needs: ClassVar[frozenset[Part]] = frozenset({"retain"})
    deterministic: ClassVar[bool] = False

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after `steps` on the retained images."""
        student = copy_of_denoiser(model, accelerator)
        retain = self.drawn_retain(data.retain, self.retain_loss(seed))
        self.train(student, [[retain]], accelerator=accelerator, seed=seed, budget=budget)
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"lr": LogUniform(1e-5, 1e-3), "steps": Choice((50, 100, 200))}
