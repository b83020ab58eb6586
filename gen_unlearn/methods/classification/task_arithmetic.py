"""Task arithmetic: learn the images to forget still better, and go the other way."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import cross_entropy
from gen_unlearn.methods.loop import LoopSettings
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(LoopSettings):
    """Return ``theta0 - scale * (theta_FT - theta0)`` (Ilharco et al., arXiv 2212.04089).

    ``theta_FT`` is the original after `epochs` on the images to forget. Buffers, such as running statistics,
    stay those of the original.

    Attributes:
        scale: how far to go back, above 0.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget"})
    deterministic: ClassVar[bool] = False
    scale: float = 0.5
    epochs: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ValueError(f"expected scale above 0, got {self.scale}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model, moved against the task vector of the images to forget."""
        vector = task_vector(self, model, data.forget, accelerator=accelerator, seed=seed, budget=budget)
        return moved(model, vector, -self.scale, accelerator)

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-4, 1e-1),
            "scale": LogUniform(0.05, 5.0),
            "epochs": Choice((3, 5, 10)),
        }


def task_vector(
    settings: LoopSettings,
    model: nn.Module,
    images: IndexedImages,
    *,
    accelerator: Accelerator,
    seed: int,
    budget: Budget,
) -> dict[str, Tensor]:
    """Return how training on some images moves the parameters: by name, ``theta_FT - theta0``.

    Args:
        settings: of the training, which minimises the cross-entropy.
        model: where it starts; stays as it is.
        images: what is trained on.
        accelerator: device and precision.
        seed: of the order of the images.
        budget: where samples are counted.
    """
    student = copy_of(model, accelerator)
    term = settings.forget_term(images, cross_entropy)
    settings.run(student, lambda _: [[term]], accelerator=accelerator, seed=seed, budget=budget)
    start = dict(model.named_parameters())
    return {
        name: parameter.detach() - start[name].detach().to(parameter.device)
        for name, parameter in student.named_parameters()
    }


@torch.no_grad()
def moved(
    model: nn.Module, vector: Mapping[str, Tensor], scale: float, accelerator: Accelerator
) -> nn.Module:
    """Return a copy of a model with `scale` times a vector added to its parameters."""
    result = copy.deepcopy(model).to(accelerator.device)
    for name, parameter in result.named_parameters():
        parameter.add_(vector[name], alpha=scale)
    return result
