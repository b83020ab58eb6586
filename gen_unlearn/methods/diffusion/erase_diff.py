"""EraseDiff: retain, and pull the prediction on what is forgotten towards other noise."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

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
from gen_unlearn.methods.diffusion.gradients import (
    gradient_of,
    inner_product,
    trained_parameters,
    with_gradient,
)
from gen_unlearn.methods.diffusion.preset import Preset
from gen_unlearn.methods.diffusion.settings import DiffusionSettings
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.loop import Loss, batch_of
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import derive_seed, torch_generator
from gen_unlearn.training.batches import rows_of_step


@dataclass(frozen=True, kw_only=True)
class EraseDiff(DiffusionSettings):
    """A bilevel problem by first-order steps (arXiv 2401.05779).

    ``g = E_U |u - eps_theta|^2`` has a target `u` that is uniform over [0, 1]. From the weights as they are,
    a copy takes `inner_steps` of a fresh optimiser on `g`; ``q = g(theta) - g(theta^K)``, where the second
    is a number. The step follows ``grad E_R l + lambda grad q``, with
    ``lambda = max(eta - <grad E_R l, grad q> / |grad q|^2, 0)`` for the barrier ``"gradient"``,
    ``lambda = max((eta q - <grad E_R l, grad q>) / |grad q|^2, 0)`` for ``"value"``, or `weight` for
    ``"fixed"``. As ``grad q = grad g(theta)``, the inner steps decide about lambda in ``"value"`` alone; the
    others take them as published, so that the cost is the published one; 0 `inner_steps` leave them out.

    Cost of a step: a retained batch forward and backward, ``inner_steps + 1`` batches to forget forward and
    backward, and one more forward where there are inner steps.

    Attributes:
        inner_steps: `K`, at least 0, above 0 for ``"value"``.
        inner_lr: learning rate of these.
        barrier: see above.
        eta: at least 0.
        weight: for ``"fixed"``, at least 0.
        largest: greatest lambda, above 0; it guards against a gradient of 0.
        ema_decay: of averaged weights, which are returned then; `None` for the last ones.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    inner_steps: int = 2
    inner_lr: float = 1e-4
    barrier: Literal["gradient", "value", "fixed"] = "gradient"
    eta: float = 0.1
    weight: float = 0.1
    largest: float = 1000.0
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner_steps < (self.barrier == "value"):
            raise ValueError(
                f"expected inner_steps of at least {int(self.barrier == 'value')}, got {self.inner_steps}"
            )
        for name in ("inner_lr", "largest"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} above 0, got {getattr(self, name)}")
        for name in ("eta", "weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"expected {name} of at least 0, got {getattr(self, name)}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"expected ema_decay from 0 to below 1 or none, got {self.ema_decay}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after `steps` on both parts."""
        student = copy_of_denoiser(model, accelerator)
        averaged = student if self.ema_decay is None else copy.deepcopy(student)
        inner = InnerSteps(self, student, data, seed=seed, budget=budget)
        both = [
            self.drawn_retain(data.retain, self.retain_loss(seed)),
            self.drawn_forget(data.forget, self._barrier_term(inner, seed, budget)),
        ]

        def average(_: int, __: float) -> None:
            assert self.ema_decay is not None
            with torch.no_grad():
                for mean, weight in zip(averaged.parameters(), student.parameters(), strict=True):
                    mean.lerp_(weight, 1 - self.ema_decay)

        self.train(
            student,
            [both],
            accelerator=accelerator,
            seed=seed,
            budget=budget,
            after_step=None if self.ema_decay is None else average,
        )
        return averaged

    def _barrier_term(self, inner: InnerSteps, seed: int, budget: Budget) -> Loss:
        """Return a loss whose gradient is ``lambda grad q``; the gradient of retained images is there."""
        forget = UniformTargetLoss(seed, "forget")

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            value = forget(model, batch)
            gradient = gradient_of(value, model)
            gap = value.detach()
            if self.inner_steps:
                reached = inner(model, batch)
                budget.count(forward=len(batch.ids))
                with torch.no_grad():
                    gap = gap - forget(reached, batch)
            kept = [parameter.grad for parameter in trained_parameters(model)]
            retain = [
                torch.zeros_like(own) if p is None else p for p, own in zip(kept, gradient, strict=True)
            ]
            factor = self.multiplier(retain, gradient, gap)
            return with_gradient(factor * gap, model, [(factor * part).to(part.dtype) for part in gradient])

        return loss

    def multiplier(self, retain: list[Tensor], forget: list[Tensor], gap: Tensor) -> Tensor:
        """Return lambda, a scalar from 0 to `largest`, finite for gradients of 0.

        Args:
            retain: ``grad E_R l``.
            forget: ``grad q``.
            gap: `q`.
        """
        if self.barrier == "fixed":
            return torch.tensor(self.weight, device=gap.device)
        square = inner_product(forget, forget)
        square = square.clamp(min=torch.finfo(square.dtype).tiny)
        aligned = inner_product(retain, forget)
        if self.barrier == "value":
            return ((self.eta * gap - aligned) / square).clamp(0.0, self.largest)
        return (self.eta - aligned / square).clamp(0.0, self.largest)

    @classmethod
    def presets(cls) -> Mapping[str, Preset[EraseDiff]]:
        """Return published settings by the name of the data: four epochs of a class, each batch twice."""
        published = cls(steps=288, ema_decay=0.99)
        return {"cifar10-class": Preset(published, "arXiv 2401.05779", "mean", 3 * 32**2)}

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-5, 1e-3),
            "eta": LogUniform(0.01, 1.0),
            "steps": Choice((50, 100, 200)),
        }


@dataclass(frozen=True)
class UniformTargetLoss(DenoisingLoss):
    """The squared distance of the prediction from uniform noise over [0, 1], in place of the noise."""

    def per_image(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean squared error of every image, float32 ``(batch,)``."""
        assert isinstance(model, DenoisingModel)
        draws = self.draw(model, batch)
        noisy = model.noised(batch.inputs, draws.noise, draws.timesteps)
        generator = torch_generator(self.seed, "uniform target", self.role, batch.epoch, batch.step)
        target = torch.rand(batch.inputs.shape, generator=generator).to(batch.inputs.device)
        return squared_error(model(noisy, draws.timesteps, draws.labels), target)


class InnerSteps:
    """Steps of a copy on the images to forget, from the weights of a model, which stay as they are.

    Args:
        settings: number of steps, learning rate, batches and the greatest norm of a gradient.
        model: of the same structure as the models that are given later.
        data: the request.
        seed: of everything random.
        budget: where samples are counted.
    """

    def __init__(
        self, settings: EraseDiff, model: DenoisingModel, data: UnlearnData, *, seed: int, budget: Budget
    ) -> None:
        self._settings = replace(settings, lr=settings.inner_lr)
        self._forget, self._seed, self._budget = data.forget, seed, budget
        self._copy = copy.deepcopy(model)

    def __call__(self, model: nn.Module, batch: Batch) -> nn.Module:
        """Return the copy after all steps, with a fresh optimiser; it is the same object every time."""
        self._copy.load_state_dict(model.state_dict())
        self._copy.train(model.training)
        weights = trained_parameters(self._copy)
        optimizer = self._settings._optimizer(weights)
        count, loss = self._settings.inner_steps, UniformTargetLoss(self._seed, "inner")
        order = derive_seed(self._seed, "inner order", batch.epoch)
        size = self._settings.batch_forget
        for step in range(batch.step * count, (batch.step + 1) * count):
            rows = rows_of_step(len(self._forget), size, step, order)
            drawn = batch_of(self._forget, rows, epoch=batch.epoch, step=step)
            drawn = drawn._replace(
                inputs=drawn.inputs.to(batch.inputs.device), labels=drawn.labels.to(batch.labels.device)
            )
            self._budget.count(forward=size, backward=size)
            optimizer.zero_grad()
            loss(self._copy, drawn).backward()
            if self._settings.clip is not None:
                torch.nn.utils.clip_grad_norm_(weights, self._settings.clip)
            optimizer.step()
        return self._copy
