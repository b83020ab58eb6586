"""LoRA adapters of a frozen denoiser, each trained on its members alone, with equal bits every time.

All that is random of an image in an epoch (noise, timestep, mirroring, whether its class is told) is a hash
of the seed, the adapter, the epoch and the sample id: not of the other images, nor of their order. So is
which other members a semi-parametric denoiser looks at, among those that are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from gen_unlearn.adapters.companions import NOBODY, companions
from gen_unlearn.adapters.family import AdapterState, FitJob, HeadShape
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.one_thread import one_thread
from gen_unlearn.adapters.stacks import EMPTY, StackPlan, adamw_step, fit_in_stacks
from gen_unlearn.adapters.strict import strict_arithmetic
from gen_unlearn.models.frozen_denoiser import NULL_CLASS, FrozenDenoiser
from gen_unlearn.models.stacked_lora import DOWN, UP, Factors, LoraLayer, adapted, factor_shapes, lora_layers
from gen_unlearn.repro import torch_generator

_BRIEF = 2


@dataclass(frozen=True)
class LoraAdapters:
    """LoRA adapters of one frozen denoiser.

    Attributes:
        config: how they look, and how they are trained.
        backbone: digest of the denoiser.
        image_shape: height, width and channels of the images.
        denoiser: gives the denoiser, when it is needed. Nothing else may use it while adapters are fit.
    """

    config: LoraConfig
    backbone: str
    image_shape: tuple[int, int, int]
    denoiser: Callable[[], FrozenDenoiser] = field(compare=False, repr=False)

    def fit(self, jobs: Sequence[FitJob], shape: HeadShape, seed: int) -> list[AdapterState]:  # noqa: ARG002
        """Train adapters, each on its members alone; those of similar size are stacked.

        Raises:
            ValueError: members are without pixels, the denoiser takes no such adapters or no such stack, or a
                training diverged.
        """
        denoiser = self.denoiser()
        denoiser.require_stack(self.config.stack)
        layers = lora_layers(denoiser.network, self.config.targets, denoiser.adaptable)
        with one_thread(), strict_arithmetic(denoiser.device):
            return fit_in_stacks(
                jobs,
                self.config.stack,
                lambda some: _Stack(self.config, denoiser, layers, some, seed).train(),
            )

    def visits(self, members: int) -> int:
        """Return how often images are read to fit an adapter of so many members."""
        return self.config.epochs * members

    def device(self) -> torch.device:
        """Return where adapters are trained: where the denoiser is."""
        return self.denoiser().device

    @property
    def stack(self) -> int:
        """Adapters that are trained together."""
        return self.config.stack

    def shortened(self) -> Self:
        """Return the same with two epochs."""
        return replace(self, config=replace(self.config, epochs=min(self.config.epochs, _BRIEF)))


class _Rows(NamedTuple):
    """What a stack learns from in one step, one place behind the other.

    Attributes:
        clean: what is denoised, ``(rows, channels, height, width)``; 0 for padding, as in the others.
        noise: like `clean`.
        timesteps: int64 ``(rows,)``.
        labels: class of each row, int64 ``(rows,)``.
        shares: how much each row counts in its adapter's mean, float32 ``(rows,)``.
        beside: of each row the members that it is denoised beside, where the denoiser looks at any.
    """

    clean: Tensor
    noise: Tensor
    timesteps: Tensor
    labels: np.ndarray
    shares: Tensor
    beside: list[np.ndarray]


class _Stack:
    """Adapters that are trained together; nothing is added up over them."""

    def __init__(
        self,
        config: LoraConfig,
        denoiser: FrozenDenoiser,
        layers: Mapping[str, LoraLayer],
        jobs: Sequence[FitJob],
        seed: int,
    ) -> None:
        self.config, self.denoiser, self.layers, self.jobs, self.seed = config, denoiser, layers, jobs, seed
        self.plan = StackPlan.of(jobs, config.epochs, config.batch_size, config.stack, seed)
        self.clean = [self._encoded(job, mirrored=False) for job in jobs]
        self.mirrored = [self._encoded(job, mirrored=True) for job in jobs] if config.horizontal_flip else []
        pixels = jobs[0].members.pixels
        assert pixels is not None, "they are encoded above"
        self.tokens = denoiser.tokens(pixels)

    def _encoded(self, job: FitJob, mirrored: bool) -> Tensor:
        pixels = job.members.pixels
        if pixels is None:
            raise ValueError("expected members with pixels to train a denoiser's adapters on, got none")
        wanted = np.ascontiguousarray(pixels[:, :, ::-1]) if mirrored else pixels
        return self.denoiser.encode(wanted).cpu()  # A step gathers single rows, and moves them together.

    def train(self) -> list[AdapterState]:
        """Train all of them; return the adapters in the order of the jobs."""
        factors = {name: self._first_factors(name, layer) for name, layer in self.layers.items()}
        parameters = [part.requires_grad_() for pair in factors.values() for part in pair]
        memories = [(torch.zeros_like(part), torch.zeros_like(part)) for part in parameters]
        finished: dict[int, AdapterState] = {}
        for step in range(len(self.plan.rows)):
            gradients = self._gradients(step, factors, parameters)
            self._clip(gradients)
            rates = self._rates(step)
            with torch.no_grad():
                for part, gradient, memory in zip(parameters, gradients, memories, strict=True):
                    rate = rates.view(-1, *(1 for _ in part.shape[1:]))
                    adamw_step(part, gradient, memory, step + 1, rate, self.config.weight_decay)
            for place in self.plan.ended(step):
                finished[place] = _state_of(factors, place)
                _require_finite(finished[place], self.jobs[place].adapter)
        return [finished[place] for place in range(len(self.jobs))]

    def _gradients(
        self, step: int, factors: Mapping[str, Factors], parameters: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the gradients of the sum of all adapters' mean squared errors."""
        rows, schedule = self._rows(step), self.denoiser.noise
        noisy = schedule.add_noise(rows.clean, rows.noise, rows.timesteps)
        targets = {"epsilon": rows.noise, "sample": rows.clean}
        kind = schedule.config.prediction_type
        target = (
            schedule.get_velocity(rows.clean, rows.noise, rows.timesteps)
            if kind == "v_prediction"
            else targets[kind]
        )
        with torch.enable_grad(), adapted(self.layers, factors, self.config.scale):
            context = self.denoiser.beside(self.tokens, rows.beside)
            predicted = self.denoiser.predict(noisy, rows.timesteps, rows.labels, context)
            errors = (predicted - target).square().mean(dim=(1, 2, 3))
            return torch.autograd.grad((errors * rows.shares).sum(), parameters)

    def _rows(self, step: int) -> _Rows:
        """Gather images and draws of a step."""
        shape, planned = self.denoiser.sample_shape, self.plan.rows[step]
        count = planned.size
        clean, noise = torch.zeros(count, *shape), torch.zeros(count, *shape)
        timesteps, labels = torch.zeros(count, dtype=torch.int64), np.zeros(count, dtype=np.int64)
        beside = [NOBODY] * count
        for row, (place, member) in enumerate(_places_and_members(planned)):
            if member == EMPTY:
                continue
            members, adapter = self.jobs[place].members, self.jobs[place].adapter
            epoch = int(self.plan.epochs[step, place])
            draw = torch_generator(self.seed, "lora", adapter, epoch, members.ids[member].tobytes())
            timesteps[row] = torch.randint(
                0, self.denoiser.noise.config.num_train_timesteps, (), generator=draw
            )
            noise[row] = torch.randn(shape, generator=draw)
            flipped, dropped = torch.rand(2, generator=draw).tolist()
            images = self.mirrored if self.mirrored and flipped < 0.5 else self.clean
            clean[row] = images[place][member]
            told = dropped >= self.config.label_dropout or not self.denoiser.has_null_class
            labels[row] = members.labels[member] if told else NULL_CLASS
            if told and self.denoiser.exemplars_per_image:
                beside[row] = companions(
                    members, member, self.denoiser.exemplars_per_image, self.seed, "beside", adapter, epoch
                )
        device, shares = self.denoiser.device, self.plan.shares(step).view(-1)
        return _Rows(
            clean.to(device), noise.to(device), timesteps.to(device), labels, shares.to(device), beside
        )

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        """Scale down the gradient of each adapter by itself: one norm for all would couple them."""
        greatest = self.config.max_grad_norm
        if not greatest:
            return
        squares = sum(gradient.square().flatten(1).sum(dim=1) for gradient in gradients)
        assert isinstance(squares, Tensor)
        factors = (greatest / squares.sqrt().clamp(min=1e-12)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *(1 for _ in gradient.shape[1:])))

    def _rates(self, step: int) -> Tensor:
        """Return the learning rate of every place, float32 ``(stack,)``."""
        rates = torch.zeros(self.config.stack)
        for place, length in enumerate(self.plan.lengths):
            share = min(step / length, 1.0)
            rates[place] = self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        return rates.to(self.denoiser.device)

    def _first_factors(self, name: str, layer: LoraLayer) -> Factors:
        """Draw `A` uniformly, as peft does, each adapter's by itself; `B` is 0."""
        down, up = factor_shapes(layer, self.config.rank)
        first = torch.zeros(self.config.stack, *down)
        for place, job in enumerate(self.jobs):
            draws = torch.rand(down, generator=torch_generator(self.seed, "adapter", job.adapter, name))
            first[place] = (2 * draws - 1) * math.prod(down[1:]) ** -0.5
        device = self.denoiser.device
        return Factors(first.to(device), torch.zeros(self.config.stack, *up, device=device))


def _places_and_members(planned: np.ndarray) -> list[tuple[int, int]]:
    """Return the place and the member of every row of a step, int64 ``(stack, batch)``."""
    return [(place, member) for place, members in enumerate(planned.tolist()) for member in members]


def _state_of(factors: Mapping[str, Factors], place: int) -> AdapterState:
    """Return a copy of one adapter of a stack, by peft's names."""
    arrays = {}
    for name, pair in factors.items():
        arrays[name + DOWN] = pair.down[place].detach().cpu().numpy().copy()
        arrays[name + UP] = pair.up[place].detach().cpu().numpy().copy()
    return arrays


def _require_finite(state: AdapterState, adapter: int) -> None:
    """Raise a ValueError if the training of an adapter diverged."""
    if not all(np.isfinite(array).all() for array in state.values()):
        raise ValueError(
            f"expected finite weights, got nan or infinity in adapter {adapter} after its training; lower "
            "lora.learning_rate, or set lora.max_grad_norm"
        )
