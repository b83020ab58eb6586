"""Gradient surgery: ascend on what is forgotten only in directions that do not hurt what is retained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingLoss, copy_of_denoiser
from gen_unlearn.methods.diffusion.gradients import gradient_of, inner_product, with_gradient
from gen_unlearn.methods.diffusion.settings import DiffusionSettings
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.loop import Loss
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class GradientSurgery(DiffusionSettings):
    """Add to the retain gradient the ascent gradient, without its part that opposes the former.

    With g_r the gradient of the retained images' loss and ``a = -g_f`` that of the ascent, a step follows
    ``retain_weight g_r + forget_weight a'``, where ``a' = a - (<a, g_r> / |g_r|^2) g_r`` if ``<a, g_r> < 0``
    and a otherwise: the projection of PCGrad (Yu et al., arXiv 2001.06782), of one gradient only, as for
    unlearning of generative models in Bae et al., "Gradient surgery for one-shot unlearning on generative
    model" (arXiv 2307.04550).

    Attributes:
        forget_weight: of the ascent.
        retain_weight: of the retained images; 0 follows the projected ascent alone.

    Raises:
        ValueError: a weight is out of range.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    forget_weight: float = 1.0
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.forget_weight > 0:
            raise ValueError(f"expected forget_weight above 0, got {self.forget_weight}")
        if self.retain_weight < 0:
            raise ValueError(f"expected retain_weight of at least 0, got {self.retain_weight}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after `steps` of one batch of each part."""
        student = copy_of_denoiser(model, accelerator)
        surgery = _Surgery(
            DenoisingLoss(seed, "forget"), self.retain_loss(seed), self.forget_weight, self.retain_weight
        )
        forget = self.drawn_forget(data.forget, surgery.ascend)
        retain = self.drawn_retain(data.retain, surgery.combine)
        self.train(student, [[forget, retain]], accelerator=accelerator, seed=seed, budget=budget)
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-5, 1e-3),
            "steps": Choice((50, 100, 200)),
            "forget_weight": LogUniform(0.01, 10.0),
        }


def opposition(ascent: Sequence[Tensor], retain: Sequence[Tensor]) -> Tensor:
    """Return what part of a gradient another one opposes: ``min(<a, g_r>, 0) / |g_r|^2``.

    Args:
        ascent: a, one tensor for each parameter.
        retain: g_r, of the same shapes.

    Returns:
        A scalar of at most 0, and 0 if `retain` is: ``a - opposition g_r`` has no conflict with g_r.
    """
    square = inner_product(retain, retain)
    tiny = torch.finfo(square.dtype).tiny
    return inner_product(ascent, retain).clamp(max=0) / square.clamp(min=tiny)


@dataclass
class _Surgery:
    """The losses of the two terms of a step: the first keeps its gradient, the second carries the sum."""

    forget: Loss
    retain: Loss
    forget_weight: float
    retain_weight: float
    ascent: list[Tensor] = field(default_factory=list)

    def ascend(self, model: nn.Module, batch: Batch) -> Tensor:
        """Keep the gradient of the ascent, and return a loss without a gradient of its own."""
        loss = self.forget(model, batch)
        self.ascent = gradient_of(-loss, model)
        return with_gradient(loss, model, [None] * len(self.ascent))

    def combine(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return a loss whose gradient is that of the step."""
        loss = self.retain(model, batch)
        own = gradient_of(loss, model)
        kept = self.retain_weight - self.forget_weight * opposition(self.ascent, own)
        total = [
            (kept * one).add_(up, alpha=self.forget_weight) for one, up in zip(own, self.ascent, strict=True)
        ]
        return with_gradient(loss, model, total)
