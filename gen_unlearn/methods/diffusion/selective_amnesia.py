"""Selective Amnesia: a forgotten class becomes noise, and elastic weights and replay keep the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingLoss, DenoisingModel, copy_of_denoiser
from gen_unlearn.methods.diffusion.labels import forgotten_classes, require_labels
from gen_unlearn.methods.diffusion.per_image import denoising_fisher
from gen_unlearn.methods.diffusion.preset import Preset
from gen_unlearn.methods.diffusion.sampling import sample_images
from gen_unlearn.methods.diffusion.settings import DiffusionSettings
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import torch_generator


@dataclass(frozen=True, kw_only=True)
class SelectiveAmnesia(DiffusionSettings):
    """Learn uniform noise for forgotten classes and own samples for the others.

    Heng and Soh, "Selective amnesia" (arXiv 2305.10120). The loss is ``loss(x ~ U[-1, 1], c_u) +
    replay_weight loss(own samples) + penalty sum F (theta - theta0)^2``. It forgets the whole classes of the
    images to forget, of which it reads the labels alone, and reads no retained image: F and the replay are
    taken on samples of the original.

    Attributes:
        replay_weight: of the own samples' loss.
        penalty: weight of the elastic penalty, for a loss that is a mean over pixels and timesteps.
        replay_per_class: samples of every class that stays.
        fisher_samples: samples of all classes, in turn, that F is taken of, one gradient for each.
        fisher_draws: timesteps of each of them, evenly over the schedule; their mean stands for the mean over
            the whole schedule, and the fewer they are, the more F is too large.
        sampler_steps: of DDIM.

    Raises:
        ValueError: a number is out of range, the network has no labels, or no class stays.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget"})
    deterministic: ClassVar[bool] = False
    replay_weight: float = 1.0
    penalty: float = 1e4
    replay_per_class: int = 50
    fisher_samples: int = 50
    fisher_draws: int = 10
    sampler_steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("replay_weight", "penalty"):
            if getattr(self, name) < 0:
                raise ValueError(f"expected {name} of at least 0, got {getattr(self, name)}")
        for name in ("replay_per_class", "fisher_samples", "fisher_draws", "sampler_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model that was trained on noise and on samples of its own."""
        student = copy_of_denoiser(model, accelerator)
        require_labels(student, "SelectiveAmnesia")
        gone = forgotten_classes(data.forget)
        stay = np.setdiff1d(np.arange(student.classes), gone)
        if not len(stay):
            raise ValueError(
                f"expected a class that stays, got all {student.classes} to forget; forget fewer"
            )
        if not self.steps:
            return student
        names, shape = data.forget.class_names, data.forget.image_shape
        labels = np.repeat(stay, self.replay_per_class)
        replay = sample_images(
            student, labels, names, shape, role="replay", seed=seed, budget=budget, steps=self.sampler_steps
        )
        anchor, found = anchor_of(student), self.fisher(student, names, shape, seed=seed, budget=budget)
        fisher = {name: found[name].to(weight.dtype) for name, weight in anchor.items()}
        forget = self.drawn_forget(data.forget, SurrogateLoss(seed, anchor, fisher, self.penalty))
        kept = self.drawn_retain(replay, self.retain_loss(seed), self.replay_weight)
        self.train(student, [[forget, kept]], accelerator=accelerator, seed=seed, budget=budget)
        return student

    def fisher(
        self,
        model: DenoisingModel,
        class_names: tuple[str, ...],
        image_shape: tuple[int, int, int],
        *,
        seed: int,
        budget: Budget,
    ) -> dict[str, Tensor]:
        """Return the diagonal Fisher information of samples of a model, by name of the parameter, float64."""
        labels = np.arange(self.fisher_samples, dtype=np.int64) % model.classes
        own = sample_images(
            model,
            labels,
            class_names,
            image_shape,
            role="fisher",
            seed=seed,
            budget=budget,
            steps=self.sampler_steps,
        )
        return denoising_fisher(model, own, seed=seed, role="fisher", draws=self.fisher_draws, budget=budget)

    def from_sums(self, pixels: int, timesteps: int = 1000) -> Self:
        """Return these settings, published for sums over pixels, for means over pixels.

        The published information is that of a sum over pixels and all timesteps, ours of a mean over both:
        ``F_sum = (pixels timesteps)^2 F_mean``. The whole objective is then divided by the pixels.
        """
        return replace(super().from_sums(pixels), penalty=self.penalty * pixels * timesteps**2)

    @classmethod
    def presets(cls) -> Mapping[str, Preset[SelectiveAmnesia]]:
        """Return published settings, converted to means over pixels, by the name of the data."""
        source = "Selective Amnesia, Heng and Soh, NeurIPS 2023, arXiv 2305.10120"
        published = cls(
            steps=20_000, penalty=10.0, replay_per_class=500, fisher_samples=5000, fisher_draws=1000
        )
        small, large = 3 * 32**2, 3 * 96**2
        stl = replace(published, batch_forget=64, batch_retain=64)
        return {
            "cifar10": Preset(published.from_sums(small), source, "sum", small),
            "stl10": Preset(stl.from_sums(large), source, "sum", large),
        }

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-5, 1e-3),
            "steps": Choice((50, 100, 200)),
            "penalty": LogUniform(1e2, 1e8),
        }


def anchor_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@dataclass(frozen=True)
class SurrogateLoss:
    """The loss of uniform noise under forgotten labels, and the elastic penalty.

    Attributes:
        seed: of the noise that stands for images, and of timesteps.
        anchor: weights of the original, by name.
        fisher: importance of every weight, by name.
        penalty: weight of the elastic penalty.
    """

    seed: int
    anchor: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor]
    penalty: float

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch, of which the labels alone are read."""
        own = DenoisingLoss(self.seed, "forget")(model, self.surrogate(batch))
        return own + self.penalty * self.drift(model)

    def surrogate(self, batch: Batch) -> Batch:
        """Return a batch with the same labels, whose images are uniform noise in [-1, 1]."""
        generator = torch_generator(self.seed, "surrogate", batch.epoch, batch.step)
        uniform = torch.rand(batch.inputs.shape, generator=generator) * 2 - 1
        return batch._replace(inputs=uniform.to(batch.inputs.device))

    def drift(self, model: nn.Module) -> Tensor:
        """Return ``sum F (theta - theta0)^2``."""
        parts = [
            (self.fisher[name].to(parameter.dtype) * (parameter - self.anchor[name]).square()).sum()
            for name, parameter in model.named_parameters()
        ]
        return torch.stack(parts).sum()
