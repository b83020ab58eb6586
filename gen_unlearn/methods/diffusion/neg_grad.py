"""NegGrad for denoisers: gradient ascent on what is forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from accelerate import Accelerator
from torch import nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingLoss, copy_of_denoiser
from gen_unlearn.methods.diffusion.preset import Preset
from gen_unlearn.methods.diffusion.settings import DiffusionSettings
from gen_unlearn.methods.diffusion.siss_study import study_presets
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class NegGradDenoiser(DiffusionSettings):
    """Ascend on the loss of the images to forget: minimise ``-strength E_U l``.

    Cost of a step: one batch forward and backward. Nothing keeps the model usable; few steps are meant. Adam
    makes up for the strength, unless the norm of the gradient is clipped or below `eps`.

    Attributes:
        strength: factor of the loss, above 0.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget"})
    deterministic: ClassVar[bool] = False
    strength: float = 1.0
    lr: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strength > 0:
            raise ValueError(f"expected strength above 0, got {self.strength}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after `steps` of ascent."""
        student = copy_of_denoiser(model, accelerator)
        forget = self.drawn_forget(data.forget, DenoisingLoss(seed, "forget"), -self.strength)
        self.train(student, [[forget]], accelerator=accelerator, seed=seed, budget=budget)
        return student

    @classmethod
    def presets(cls) -> Mapping[str, Preset[NegGradDenoiser]]:
        """Return the settings of the study of SISS, where this is a baseline, by the name of the data."""
        return study_presets(cls(strength=3.0), cls(strength=0.0303))

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"lr": LogUniform(1e-6, 1e-3), "steps": Choice((5, 10, 20, 50))}
