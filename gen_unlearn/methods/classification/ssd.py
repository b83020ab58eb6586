"""Selective synaptic dampening: shrink the weights that matter more for what is forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.literals import check_literals
from gen_unlearn.methods.logits import cross_entropy
from gen_unlearn.methods.loop import Loss
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.per_sample import squared_gradient_sums
from gen_unlearn.methods.search_space import LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData

_ROUNDING = 1e-9
"""Equal importances, summed in different ways, differ by less than this share."""


@dataclass(frozen=True, kw_only=True)
class Ssd:
    """Shrink where ``I_f > alpha I_D``: ``theta <- min(dampening I_D / I_f, 1) theta`` (arXiv 2308.07707).

    I_f and I_D are the means of squared per-sample gradients over the images to forget and over all of them.
    As I_D contains I_f, no weight can be selected for ``alpha >= images / images to forget``: the published
    alpha of 10 is for a few per cent of images or less.

    Attributes:
        alpha: how much more a weight has to matter for what is forgotten, above 0.
        dampening: lambda of the paper, at least 0; 0 sets the selected weights to 0.
        reference: what I_D is taken over: ``"all"`` images, as published, or those of ``"retain"``.
        microbatch: images whose gradients are in memory at a time.

    Raises:
        ValueError: a number is out of range.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = True
    alpha: float = 10.0
    dampening: float = 1.0
    reference: Literal["all", "retain"] = "all"
    microbatch: int = 16

    def __post_init__(self) -> None:
        check_literals(self)
        if not self.alpha > 0 or not self.dampening >= 0:
            raise ValueError(
                f"expected alpha above 0 and dampening of at least 0, got {self.alpha} and {self.dampening}"
            )
        if self.microbatch < 1:
            raise ValueError(f"expected microbatch of at least 1, got {self.microbatch}")

    def __call__(
        self,
        model: nn.Module,
        data: UnlearnData,
        *,
        accelerator: Accelerator,
        seed: int,  # noqa: ARG002
        budget: Budget,
    ) -> nn.Module:
        """Return a copy of the model with dampened weights.

        Raises:
            ValueError: no weight is selected.
        """
        student, loss = copy_of(model, accelerator), self.loss()
        sums = squared_gradient_sums(student, data.forget, loss, microbatch=self.microbatch, budget=budget)
        others = squared_gradient_sums(student, data.retain, loss, microbatch=self.microbatch, budget=budget)
        forget = {name: total / len(data.forget) for name, total in sums.items()}
        if self.reference == "all":
            count = len(data.forget) + len(data.retain)
            reference = {name: (total + others[name]) / count for name, total in sums.items()}
        else:
            reference = {name: total / len(data.retain) for name, total in others.items()}
        selected = dampen(student, forget, reference, alpha=self.alpha, dampening=self.dampening)
        if not selected:
            most = (len(data.forget) + len(data.retain)) / len(data.forget)
            limit = f" below {most:.3g}" if self.reference == "all" and self.alpha >= most else ""
            raise ValueError(
                f"no weight matters {self.alpha} times as much for the images to forget as for "
                f"{self.reference} images; lower alpha{limit}"
            )
        return student

    @classmethod
    def loss(cls) -> Loss:
        """Return the loss whose per-sample gradients make the importance."""
        return cross_entropy

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"alpha": LogUniform(1.0, 100.0), "dampening": LogUniform(0.1, 1.0)}


@torch.no_grad()
def dampen(
    model: nn.Module,
    forget: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    *,
    alpha: float,
    dampening: float,
) -> int:
    """Shrink the selected weights of a model in place, and return how many were selected.

    Args:
        model: is changed.
        forget: importance for the images to forget, by the names of parameters.
        reference: importance for the images that it is compared with.
        alpha: a weight is selected where ``forget > alpha reference``.
        dampening: a selected weight is multiplied with ``min(dampening reference / forget, 1)``.
    """
    count = 0
    for name, parameter in model.named_parameters():
        selected = forget[name] > alpha * reference[name] * (1 + _ROUNDING)
        factor = (dampening * reference[name] / forget[name]).clamp(max=1.0)
        parameter.copy_(torch.where(selected, parameter * factor, parameter))
        count += int(selected.sum())
    return count
