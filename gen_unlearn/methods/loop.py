"""The loop that gradient-based methods share: passes over data, one optimiser, a counted budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.float_images import FloatImages
from gen_unlearn.methods.literals import check_literals
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.row_order import rows_of_steps
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import derive_seed, numpy_generator, torch_generator
from gen_unlearn.training.classification_batches import Augmentation

Loss = Callable[[nn.Module, Batch], Tensor]
"""Maps a model and a batch to a scalar, the mean over the batch."""


@dataclass(frozen=True)
class Term:
    """One part of the loss, with the images it is taken on.

    Attributes:
        data: every epoch shows each of them once, in an order of its own; none is dropped.
        loss: mean over a batch.
        batch_size: images of a step.
        weight: of the loss; negative to ascend.
        normalisation: whether batch normalisation uses the batch and updates its averages (``"train"``), or
            uses the averages (``"eval"``), as for batches of images to forget alone. A batch of one image
            always uses the averages.
        drawn: steps of an epoch, whose full batches come from an endless row of shuffled passes over the
            data; `None` for one pass, whose last batch may be smaller.
        floats: what stands in for images of `data`, before they are augmented.
    """

    data: IndexedImages
    loss: Loss
    batch_size: int
    weight: float = 1.0
    normalisation: Literal["train", "eval"] = "train"
    drawn: int | None = None
    floats: FloatImages | None = None

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        if self.drawn is not None:
            return self.drawn if len(self.data) else 0
        return math.ceil(len(self.data) / self.batch_size)

    def rows(self, *parts: int | str) -> Iterator[np.ndarray]:
        """Yield the rows of each step of an epoch, over and over; `parts` seed their order."""
        if self.drawn is not None:
            yield from rows_of_steps(len(self.data), self.batch_size, derive_seed(*parts))
        order = torch.randperm(len(self.data), generator=torch_generator(*parts)).numpy()
        for step in itertools.count():
            start = step % self.steps * self.batch_size
            yield order[start : start + self.batch_size]


Pass = Sequence[Term]
"""Terms that are stepped on together: the longest decides the steps, the others start again."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How a method takes its steps; the base of the settings of every method with gradients.

    Attributes:
        lr: learning rate.
        epochs: how often all passes are gone through.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        momentum: of SGD.
        weight_decay: added to the gradient; decoupled for AdamW.
        decay: how the learning rate goes on: it stays, falls by half a cosine, or rises over a tenth of the
            steps and falls by straight lines.
        milestones: epochs, counted from 1, after which the learning rate is a tenth of what it was.
        batch_forget: images to forget of a step.
        batch_retain: retained images of a step.
        augment: random changes of images.
        bn_mode_forget: how batch normalisation treats batches of images to forget, see `Term`.
        freeze_bn_stats: keep running averages everywhere.
        clip: greatest norm of the gradient; `None` for none.

    Raises:
        ValueError: a number is out of range, or a word is not one of those that are known.
    """

    lr: float = 0.01
    epochs: int = 10
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay: Literal["constant", "cosine", "trapezoid"] = "constant"
    milestones: tuple[int, ...] = ()
    batch_forget: int = 64
    batch_retain: int = 64
    augment: Augmentation = field(default_factory=Augmentation)
    bn_mode_forget: Literal["train", "eval"] = "eval"
    freeze_bn_stats: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        check_literals(self)
        if not self.lr > 0:
            raise ValueError(f"expected lr above 0, got {self.lr}")
        for name in ("epochs", "batch_forget", "batch_retain"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        for name in ("momentum", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"expected {name} of at least 0, got {getattr(self, name)}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"expected clip above 0 or none, got {self.clip}")

    def forget_term(
        self, data: IndexedImages, loss: Loss, weight: float = 1.0, floats: FloatImages | None = None
    ) -> Term:
        """Return a term over images to forget."""
        return Term(data, loss, self.batch_forget, weight, self.bn_mode_forget, floats=floats)

    def retain_term(
        self, data: IndexedImages, loss: Loss, weight: float = 1.0, floats: FloatImages | None = None
    ) -> Term:
        """Return a term over retained images."""
        return Term(data, loss, self.batch_retain, weight, floats=floats)

    def run(
        self,
        model: nn.Module,
        passes: Callable[[int], Sequence[Pass]],
        *,
        accelerator: Accelerator,
        seed: int,
        budget: Budget,
        after_step: Callable[[int, float], None] | None = None,
        after_epoch: Callable[[int], None] | None = None,
        modules: Sequence[str] = ("",),
    ) -> None:
        """Train a model in place, on the parameters that need gradients.

        Args:
            model: what to train.
            passes: returns the passes of an epoch, counted from 0.
            accelerator: device and precision.
            seed: of the order of images and of their augmentation.
            budget: where samples are counted.
            after_step: called after every step of the optimiser with the epoch, from 0, and the learning rate
                of the step.
            after_epoch: called with the number of every epoch, from 0, when it is over.
            modules: names of the modules where batch normalisation may use the batch and change its averages;
                elsewhere it uses and keeps them. ``""`` is the whole model.

        Raises:
            ValueError: a loss is not finite, or no step was taken.
        """
        model.to(accelerator.device)
        norms = _batch_norms(model, () if self.freeze_bn_stats else modules)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = self._optimizer(trained)
        planned = sum(max(t.steps for t in one) for epoch in range(self.epochs) for one in passes(epoch))
        precision = accelerator.autocast if accelerator.native_amp else nullcontext
        done, losses = 0, torch.zeros((), device=accelerator.device)
        for epoch in range(self.epochs):
            for number, one in enumerate(passes(epoch)):
                for batches in _batches(one, self.augment, seed, epoch, number):
                    lr = self.lr * self._factor(epoch, done / planned)
                    optimizer.param_groups[0]["lr"] = lr
                    optimizer.zero_grad()
                    for term, batch in zip(one, batches, strict=True):
                        budget.count(forward=len(batch.ids), backward=len(batch.ids))
                        alone = len(batch.ids) == 1
                        _set_modes(model, norms, "eval" if alone else term.normalisation)
                        placed = batch._replace(
                            inputs=batch.inputs.to(accelerator.device),
                            labels=batch.labels.to(accelerator.device),
                        )
                        with precision():
                            loss = term.loss(model, placed)
                        losses += loss.detach()  # One that is not finite leaves no finite sum.
                        loss.backward(torch.full_like(loss, term.weight))
                    if self.clip is not None:
                        torch.nn.utils.clip_grad_norm_(trained, self.clip)
                    optimizer.step()
                    done += 1
                    if after_step is not None:
                        after_step(epoch, lr)
            if not losses.isfinite():
                raise ValueError(
                    f"the loss is not finite in epoch {epoch + 1} of {self.epochs}: it ran away; "
                    f"lower lr ({self.lr}) or set clip"
                )
            if after_epoch is not None:
                after_epoch(epoch)
        if not done:
            raise ValueError("expected images to take steps on, got none; declare what the method needs")

    def _optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        match self.optimizer:
            case "sgd":
                return torch.optim.SGD(
                    parameters, self.lr, momentum=self.momentum, weight_decay=self.weight_decay
                )
            case "adam":
                return torch.optim.Adam(parameters, self.lr, weight_decay=self.weight_decay)
            case "adamw":
                return torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay)

    def _factor(self, epoch: int, progress: float) -> float:
        """Return what the learning rate is multiplied with; `progress` goes from 0 to 1."""
        factor: float = 0.1 ** sum(epoch >= milestone for milestone in self.milestones)
        match self.decay:
            case "constant":
                return factor
            case "cosine":
                return factor * 0.5 * (1 + math.cos(math.pi * progress))
            case "trapezoid":
                return factor * min(1.0, (progress + 0.01) / 0.1, (1 - progress) / 0.9)


def _batches(
    terms: Pass, augment: Augmentation, seed: int, epoch: int, number: int
) -> Iterator[tuple[Batch, ...]]:
    """Yield one batch of each term for every step of a pass."""
    rows = [term.rows(seed, "order", epoch, number, place) for place, term in enumerate(terms)]
    changes = augment != Augmentation()
    for step in range(max(term.steps for term in terms)):
        found = []
        for place, term in enumerate(terms):
            draws = numpy_generator(seed, "augment", epoch, number, place, step) if changes else None
            found.append(batch_of(term.data, next(rows[place]), augment, draws, epoch, step, term.floats))
        yield tuple(found)


def batch_of(
    data: IndexedImages,
    rows: np.ndarray,
    augment: Augmentation | None = None,
    draws: np.random.Generator | None = None,
    epoch: int = 0,
    step: int = 0,
    floats: FloatImages | None = None,
) -> Batch:
    """Return some rows as a batch on the CPU, augmented if there is something to draw from."""
    inputs = to_model_input(data.images[rows])
    if floats is not None:
        floats.put(inputs, rows)
    if augment is not None and draws is not None:
        inputs = augment(inputs, draws)
    return Batch(inputs, torch.from_numpy(data.labels[rows]), data.ids[rows], epoch, step)


def batches_of(data: IndexedImages, batch_size: int) -> Iterator[Batch]:
    """Yield all rows in their order, as batches on the CPU."""
    for start in range(0, len(data), batch_size):
        yield batch_of(data, np.arange(start, min(start + batch_size, len(data))))


def _batch_norms(model: nn.Module, inside: Sequence[str]) -> dict[_NormBase, bool]:
    """Return all batch normalisations, and whether each may use the batch.

    It may inside of some modules, unless a weight of its own is not trained.
    """
    chosen = {part for name in inside for part in model.get_submodule(name).modules()}
    return {
        module: module in chosen and all(weight.requires_grad for weight in module.parameters())
        for module in model.modules()
        if isinstance(module, _NormBase)
    }


def _set_modes(
    model: nn.Module, norms: Mapping[_NormBase, bool], normalisation: Literal["train", "eval"]
) -> None:
    """Train all modules; batch normalisation only where it may use the batch."""
    if not model.training:
        model.train()
    for module, may in norms.items():
        training = may and normalisation == "train"
        if module.training != training:  # To set what a module has takes longer.
            module.training = training
