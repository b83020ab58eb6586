"""The loss of SISS on a batch: two images, one noise, one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingLoss, DenoisingModel, squared_error
from gen_unlearn.methods.diffusion.gradients import gradient_of, norm, ratio_factor
from gen_unlearn.methods.diffusion.siss_weights import (
    Mixed,
    importance_weights,
    interpolated,
    mixed,
    weight_entropy,
)
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.repro import derive_seed, torch_generator
from gen_unlearn.training.batches import rows_of_step


class Pairs(NamedTuple):
    """What is random about a step.

    Attributes:
        mixed: noisy images, and their distances; the gap is infinite where the network sees other labels.
        timesteps: int64 ``(batch,)``.
        labels: of the image that the noisy one comes from, int64 ``(batch,)``.
        mixture: lambda, float32 ``(batch,)``.
    """

    mixed: Mixed
    timesteps: Tensor
    labels: Tensor
    mixture: Tensor


@dataclass
class SissLoss:
    """``retain_weight w_x l(x) - c w_a l(a)``, the mean over a batch of images `x` and as many `a`.

    Attributes:
        forget: where `a` is drawn from: an endless row of shuffled passes.
        retain_weight: of the first part.
        forget_weight: `c`, if there is no ratio.
        knots: lambda at equal distances of timesteps.
        ratio: norm of the gradient of the second part, see `Siss`; `None` for none.
        ratio_unit: see `Siss`.
        norm_every: steps between two measurements of the norm.
        largest: greatest `c`.
        label_dropout: probability of the null label, of both images together.
        seed: of everything random.
        budget: where the backward passes of measurements are counted.
        entropies: mean entropy of the weights in every step so far, scalars.
    """

    forget: IndexedImages
    retain_weight: float
    forget_weight: float
    knots: tuple[float, ...]
    ratio: float | None
    ratio_unit: Literal["norm", "share"]
    norm_every: int
    largest: float
    label_dropout: float
    seed: int
    budget: Budget
    entropies: list[Tensor] = field(default_factory=list)
    _factor: Tensor | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch of all training images."""
        assert isinstance(model, DenoisingModel)
        first, second = self.parts(model, batch)
        if self.ratio is None:
            return first - self.forget_weight * second
        if self._factor is None or batch.step % self.norm_every == 0:
            self._factor = self._measured(model, first, second, len(batch.ids))
        return first - self._factor.to(second.dtype) * second

    def parts(self, model: DenoisingModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return ``retain_weight E w_x l(x)`` and ``E w_a l(a)``, two scalars of one forward pass."""
        pairs = self.draw(model, batch)
        found = model(pairs.mixed.noisy, pairs.timesteps, pairs.labels)
        of_first, of_second = importance_weights(pairs.mixed.gap, pairs.mixture)
        self.entropies.append(weight_entropy(pairs.mixed.gap, pairs.mixture).mean())
        first = (of_first * squared_error(found, pairs.mixed.noise_first)).mean()
        return self.retain_weight * first, (of_second * squared_error(found, pairs.mixed.noise_second)).mean()

    def draw(self, model: DenoisingModel, batch: Batch) -> Pairs:
        """Return noisy images of a batch: a function of seed, epoch and step."""
        device = batch.inputs.device
        other = self.others(batch)
        inputs, labels = other.inputs.to(device), other.labels.to(device)
        draws = DenoisingLoss(self.seed, "siss", self.label_dropout).draw(model, batch)
        if model.null_label is not None:
            labels = torch.where(draws.labels == model.null_label, draws.labels, labels)
        mixture = interpolated(self.knots, draws.timesteps, model.num_timesteps)
        generator = torch_generator(self.seed, "siss source", batch.epoch, batch.step)
        chosen = torch.rand(len(inputs), generator=generator).to(device) < mixture
        gamma, sigma = (model.get_buffer(name)[draws.timesteps] for name in ("signal", "deviation"))
        found = mixed(batch.inputs, inputs, draws.noise, gamma, sigma, chosen)
        if model.network.config.num_class_embeds is not None:
            certain = torch.where(chosen, -torch.inf, torch.inf)
            found = found._replace(gap=torch.where(draws.labels == labels, found.gap, certain))
        return Pairs(found, draws.timesteps, torch.where(chosen, labels, draws.labels), mixture)

    def others(self, batch: Batch) -> Batch:
        """Return as many images to forget as a batch has images, on the CPU."""
        seed = derive_seed(self.seed, "siss forget", batch.epoch)
        return batch_of(
            self.forget, rows_of_step(len(self.forget), len(batch.ids), batch.step, seed), step=batch.step
        )

    def _measured(self, model: nn.Module, first: Tensor, second: Tensor, count: int) -> Tensor:
        """Return what the second part is multiplied with, by the norms of the gradients as they are."""
        assert self.ratio is not None
        self.budget.count(backward=count)
        forget_norm = norm(gradient_of(second, model, keep_graph=True))
        size: Tensor | float = self.ratio
        if self.ratio_unit == "share":
            self.budget.count(backward=count)
            size = self.ratio * norm(gradient_of(first, model, keep_graph=True))
        return ratio_factor(size, forget_norm, self.largest)
