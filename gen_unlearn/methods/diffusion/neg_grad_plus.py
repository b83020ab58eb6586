"""NegGrad+ for denoisers: descent on what is retained and ascent on what is forgotten, in the same step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingLoss, copy_of_denoiser
from gen_unlearn.methods.diffusion.gradients import (
    gradient_of,
    norm,
    ratio_factor,
    trained_parameters,
    with_gradient,
)
from gen_unlearn.methods.diffusion.preset import Preset
from gen_unlearn.methods.diffusion.settings import DiffusionSettings
from gen_unlearn.methods.diffusion.siss_study import study_presets
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.loop import Loss
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class NegGradPlusDenoiser(DiffusionSettings):
    """Minimise ``E_R l - beta E_U l`` (the baseline without importance sampling of SISS, arXiv 2503.01034).

    Cost of a step: a batch of either part forward and backward, for every `scaling`.

    Attributes:
        scaling: beta is a number (``"fixed"``), or such that the gradient of the images to forget has the
            norm `ratio` (``"norm"``) or the share `ratio` of the norm of the retained ones (``"share"``).
        beta: for ``"fixed"``, at least 0.
        ratio: for the others, above 0.
        largest: greatest beta of the others, above 0.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    scaling: Literal["fixed", "norm", "share"] = "share"
    beta: float = 0.1
    ratio: float = 0.1
    largest: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise ValueError(f"expected beta of at least 0, got {self.beta}")
        for name in ("ratio", "largest"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} above 0, got {getattr(self, name)}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after `steps` on both parts."""
        student = copy_of_denoiser(model, accelerator)
        both = [
            self.drawn_retain(data.retain, self.retain_loss(seed)),
            self.drawn_forget(data.forget, self._ascent(DenoisingLoss(seed, "forget")), -1.0),
        ]
        self.train(student, [both], accelerator=accelerator, seed=seed, budget=budget)
        return student

    def _ascent(self, loss: Loss) -> Loss:
        """Return the loss of images to forget, times beta; the gradient of the retained ones is there."""

        def scaled(model: nn.Module, batch: Batch) -> Tensor:
            value = loss(model, batch)
            if self.scaling == "fixed":
                return self.beta * value
            gradient = gradient_of(value, model)
            size: Tensor | float = self.ratio
            if self.scaling == "share":
                kept = [p.grad for p in trained_parameters(model) if p.grad is not None]
                size = self.ratio * norm(kept)
            factor = ratio_factor(size, norm(gradient), self.largest)
            return with_gradient(factor * value, model, [(factor * part).to(part.dtype) for part in gradient])

        return scaled

    def from_sums(self, pixels: int) -> Self:
        """Return these settings, published for sums over pixels, for means over pixels."""
        ratio = self.ratio / pixels if self.scaling == "norm" else self.ratio
        return replace(super().from_sums(pixels), ratio=ratio)

    @classmethod
    def presets(cls) -> Mapping[str, Preset[NegGradPlusDenoiser]]:
        """Return the settings of the study of SISS, where this is a baseline, by the name of the data."""
        return study_presets(cls(scaling="norm", ratio=500.0), cls(scaling="norm", ratio=5.0))

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-5, 1e-3),
            "ratio": LogUniform(0.01, 1.0),
            "steps": Choice((50, 100, 200)),
        }
