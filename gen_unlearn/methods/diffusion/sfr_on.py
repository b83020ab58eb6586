"""SFR-on: ascend where the forgotten images matter more than the retained ones, and repair each time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingLoss, DenoisingModel, copy_of_denoiser
from gen_unlearn.methods.diffusion.per_image import denoising_fisher
from gen_unlearn.methods.diffusion.preset import Preset
from gen_unlearn.methods.diffusion.settings import DiffusionSettings
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.loop import Loss
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import keyed_order


@dataclass(frozen=True, kw_only=True)
class SfrOn(DiffusionSettings):
    """Alternate masked ascent on images to forget with descent on retained ones.

    SFR-on (Huang et al., arXiv 2409.19732). A weight moves in an ascent step where ``F_U / F_R >=
    threshold``, with F of single images, not clipped. `steps` counts pairs of an ascent and a retain step;
    the optimiser is one. Every step draws its batch anew.

    Attributes:
        ascent: weight of the ascent at the first step; it falls to 0 by half a cosine.
        power: the weight of an image in its batch is its loss to the power of ``-power``, normalised: those
            that are still remembered count more.
        threshold: least ratio of the Fisher information of a weight that ascends.
        fisher_samples: most images of each part that F is taken of, chosen by their ids.
        fisher_draws: timesteps of each of them.

    Raises:
        ValueError: a number is out of range.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    ascent: float = 10.0
    power: float = 0.5
    threshold: float = 1.0
    fisher_samples: int = 200
    fisher_draws: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ascent", "power", "threshold"):
            if getattr(self, name) < 0:
                raise ValueError(f"expected {name} of at least 0, got {getattr(self, name)}")
        for name in ("fisher_samples", "fisher_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after pairs of an ascent and a retain step."""
        student = copy_of_denoiser(model, accelerator)
        if not self.steps:
            return student
        ascent = _MaskedAscent(student, self.mask(student, data, seed=seed, budget=budget))
        pairs = replace(self, steps=1, epochs=self.steps * self.epochs)
        loss = AdaptiveAscent(seed, self.ascent, self.power, pairs.epochs)
        forget = pairs.drawn_forget(data.forget, ascent.marked(loss))
        retain = pairs.drawn_retain(data.retain, self.retain_loss(seed))
        with ascent.hooked():
            pairs.run(
                student,
                lambda _: [[forget], [retain]],
                accelerator=accelerator,
                seed=seed,
                budget=budget,
                after_step=lambda _epoch, _lr: ascent.after_step(),
            )
        return student

    def mask(
        self, model: DenoisingModel, data: UnlearnData, *, seed: int, budget: Budget
    ) -> dict[str, Tensor]:
        """Return where a weight ascends: bool tensors by the names of parameters.

        A weight without information of either part stays.
        """
        found = []
        for role, part in (("fisher of forget", data.forget), ("fisher of retain", data.retain)):
            rows = keyed_order(part.ids, seed, role)[: self.fisher_samples]
            found.append(
                denoising_fisher(
                    model, part.select(rows), seed=seed, role=role, draws=self.fisher_draws, budget=budget
                )
            )
        forget, retain = found
        return {name: (one > 0) & (one >= self.threshold * retain[name]) for name, one in forget.items()}

    @classmethod
    def presets(cls) -> Mapping[str, Preset[SfrOn]]:
        """Return published settings, converted to means over pixels, by the name of the data."""
        source = "SFR-on, Huang et al., NeurIPS 2024, arXiv 2409.19732"
        cifar = cls(steps=150, fisher_samples=5000).from_sums(3 * 32**2)
        return {"cifar10": Preset(cifar, source, "sum", 3 * 32**2)}

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-5, 1e-3),
            "steps": Choice((25, 50, 100)),
            "ascent": LogUniform(0.1, 10.0),
        }


@dataclass(frozen=True)
class AdaptiveAscent:
    """Minus the loss of a batch, each image weighed by its own loss, falling with the epochs.

    Attributes:
        seed: of timesteps and noise.
        ascent: weight in the first epoch.
        power: see `SfrOn`.
        epochs: number of them.
    """

    seed: int
    ascent: float
    power: float
    epochs: int

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch of images to forget, at most 0."""
        own = DenoisingLoss(self.seed, "forget").per_image(model, batch)
        weights = own.detach().clamp(min=1e-12).pow(-self.power)
        return -self.factor(batch.epoch) * (weights / weights.sum() * own).sum()

    def factor(self, epoch: int) -> float:
        """Return the weight of the ascent in an epoch, from 0."""
        return self.ascent * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


class _MaskedAscent:
    """Whether a step ascends, and which weights it moves then.

    Gradients outside of the mask become 0, and what the optimiser's memory of other steps moves there is put
    back.
    """

    def __init__(self, model: DenoisingModel, mask: Mapping[str, Tensor]) -> None:
        self._parameters = dict(model.named_parameters())
        self._mask = mask
        self._before: dict[str, Tensor] = {}
        self._ascends = False

    def marked(self, loss: Loss) -> Loss:
        """Return a loss that tells, when it is called, that the step ascends."""

        def called(model: nn.Module, batch: Batch) -> Tensor:
            self._ascends = True
            self._before = {name: p.detach().clone() for name, p in self._parameters.items()}
            return loss(model, batch)

        return called

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Mask the gradients of steps that ascend."""

        def hook(mask: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda gradient: gradient * mask if self._ascends else gradient

        handles = [p.register_hook(hook(self._mask[name])) for name, p in self._parameters.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def after_step(self) -> None:
        """Put back what may not move, if the step ascended."""
        if self._ascends:
            for name, parameter in self._parameters.items():
                torch.where(self._mask[name], parameter, self._before[name], out=parameter)
        self._ascends = False
