"""Label erasure: a forgotten label steers away from its class, as ESD does with words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import (
    DenoisingLoss,
    DenoisingModel,
    copy_of_denoiser,
    squared_error,
)
from gen_unlearn.methods.diffusion.labels import forgotten_classes, require_labels
from gen_unlearn.methods.diffusion.preset import Preset
from gen_unlearn.methods.diffusion.settings import DiffusionSettings
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class LabelErasure(DiffusionSettings):
    """Learn ``eps0(null) - eta (eps0(c) - eps0(null))`` for a forgotten class c.

    eps0 is the original; this is ESD (Gandikota et al., arXiv 2303.07345) with labels. It changes what a
    label shows, and deletes no image: whole classes can be erased, single images cannot. Noisy images are
    those to forget, where the publication takes samples of the model.

    Attributes:
        eta: strength of the guidance away from the class; 0 makes the class like no class.
        weights: which of them move: all, or the embedding of labels alone.

    Raises:
        ValueError: eta is below 0, the network has no null label, or a class is not forgotten as a whole.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    eta: float = 1.0
    weights: Literal["all", "label_embedding"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta < 0:
            raise ValueError(f"expected eta of at least 0, got {self.eta}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model whose forgotten labels steer away from their classes."""
        student = copy_of_denoiser(model, accelerator)
        require_labels(student, "LabelErasure")
        if student.null_label is None:
            raise ValueError(
                f"expected a null label beside the {student.classes} classes, got none; "
                "train with label dropout, or choose salun"
            )
        for label in forgotten_classes(data.forget):
            kept = int(np.count_nonzero(data.retain.labels == label))
            if kept:
                raise ValueError(
                    f"expected whole classes to forget, got some of class {label}, of which {kept} images "
                    "are retained; forget the class, or choose a method for single images such as siss"
                )
        reference = copy_of_denoiser(model, accelerator).eval().requires_grad_(False)
        if self.weights == "label_embedding":
            student.requires_grad_(False)
            student.network.class_embedding.requires_grad_(True)
        forget = self.drawn_forget(data.forget, ErasedLabelLoss(seed, self.eta, reference, budget))
        self.train(student, [[forget]], accelerator=accelerator, seed=seed, budget=budget)
        return student

    @classmethod
    def presets(cls) -> Mapping[str, Preset[LabelErasure]]:
        """Return published settings, whose loss is a mean over pixels, by the name of the data."""
        source = "ESD, Gandikota et al., ICCV 2023, arXiv 2303.07345"
        latents = cls(steps=1000, lr=1e-5, eta=1.0, batch_forget=1, clip=None)
        return {"latents-64": Preset(latents, source, "mean", 4 * 64**2)}

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-5, 1e-3),
            "steps": Choice((50, 100, 200)),
            "eta": Choice((0.0, 0.5, 1.0, 2.0)),
        }


@dataclass(frozen=True)
class ErasedLabelLoss:
    """The distance to the original's prediction away from a class, a mean over pixels and the batch.

    Attributes:
        seed: of timesteps and noise.
        eta: see `LabelErasure`.
        reference: the original, in evaluation mode and with a null label.
        budget: where the reference is counted, twice for every image.
    """

    seed: int
    eta: float
    reference: DenoisingModel
    budget: Budget

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch of images to forget."""
        assert isinstance(model, DenoisingModel)
        draws = DenoisingLoss(self.seed, "forget").draw(model, batch)
        noisy = model.noised(batch.inputs, draws.noise, draws.timesteps)
        target = self.target(noisy, draws.timesteps, batch.labels)
        return squared_error(model(noisy, draws.timesteps, batch.labels), target).mean()

    @torch.no_grad()
    def target(self, noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """Return ``eps0(null) - eta (eps0(c) - eps0(null))``, like the images."""
        assert self.reference.null_label is not None
        self.budget.count(forward=2 * len(labels))
        null = self.reference(noisy, timesteps, torch.full_like(labels, self.reference.null_label))
        return null - self.eta * (self.reference(noisy, timesteps, labels) - null)
