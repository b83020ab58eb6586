"""Relearning: how fast a model learns the forget set again, with its anamnesis index ``relearn.ain``.

A model that only hides what it knew recovers in fewer steps than one retrained without the forget set. Every
model gets the same optimiser, images and order, never those of the method that unlearned it. Learning rate
and batch size decide the number of steps; only the ratio to the retrained model's curve means something.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen_unlearn.methods.logits import logits
from gen_unlearn.repro import derive_seed, numpy_generator

_EVALUATION_BATCH = 512


class LabelledInputs(NamedTuple):
    """Hold the images of a set as the model takes them.

    Attributes:
        inputs: floats ``(n, ...)``.
        labels: true classes, int64 ``(n,)``.
    """

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Relearning:
    """Say how every model is trained again.

    Attributes:
        lr: learning rate of plain stochastic gradient descent with momentum, > 0.
        momentum: in [0, 1).
        images_per_epoch: images drawn for an epoch from forget and retain set together, without repetition;
            all, where there are fewer.
        batch_size: images per step; a batch may run over the end of an epoch.
        steps: optimiser steps.

    Raises:
        ValueError: if a value is out of range.
    """

    lr: float = 0.1
    momentum: float = 0.9
    images_per_epoch: int = 500
    batch_size: int = 50
    steps: int = 50

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0 and 0 <= self.momentum < 1):
            raise ValueError(
                f"expected a learning rate > 0 and a momentum in [0, 1), got {self.lr} and {self.momentum}; "
                "0.1 and 0.9 are usual"
            )
        if min(self.images_per_epoch, self.batch_size, self.steps) < 1:
            raise ValueError(
                f"expected at least one image per epoch, image per step and step, got "
                f"{self.images_per_epoch}, {self.batch_size} and {self.steps}; 500, 50 and 50 are usual"
            )


@dataclass(frozen=True)
class RelearnCurve:
    """Hold what a model knew of the forget set after each step, from step 0, before the first.

    Attributes:
        accuracy: accuracy on the forget set, in percent, float64 ``(steps + 1,)``.
        loss: mean cross-entropy on it, in nats, float64 ``(steps + 1,)``.
    """

    accuracy: np.ndarray = field(compare=False)
    loss: np.ndarray = field(compare=False)

    def steps_to(self, loss: float) -> int | None:
        """Return the first step at which the loss is at most `loss`, `None` if it never is."""
        reached = np.flatnonzero(self.loss <= loss)
        return int(reached[0]) if len(reached) else None


@dataclass(frozen=True)
class RelearnComparison:
    """Compare the curve of an unlearned model with that of the retrained one.

    Attributes:
        steps: ``relearn.steps``, steps of the unlearned model to the original model's loss on the forget set;
            `None` if it did not get there.
        retrained_steps: those of the retrained model.
        ain: ``relearn.ain``, `steps` over `retrained_steps`, the anamnesis index. The target is 1; near 0 it
            was only hidden, above 1 it resists, which retraining does not. `None` if one did not get there,
            or the retrained model began there.
        accuracy_gaps: ``relearn.acc@k``, accuracy of the unlearned minus that of the retrained model after
            k = 0, 1, ... steps, in percentage points, float64 ``(steps + 1,)``.
    """

    steps: int | None
    retrained_steps: int | None
    ain: float | None
    accuracy_gaps: np.ndarray = field(compare=False)


def relearn(
    model: nn.Module,
    forget: LabelledInputs,
    retain: LabelledInputs,
    settings: Relearning,
    *,
    seed: int = 0,
) -> RelearnCurve:
    """Train a copy of a model on forget and retain images, and measure it on the forget set after each step.

    All parameters are trained, frozen ones too, and batch statistics are updated. The images of each step
    follow from the seed and the sizes of the sets alone; give every model the same. The model is untouched,
    and so is the global random state.

    Args:
        model: a classifier that returns logits; runs on its device.
        forget: the forget set.
        retain: the retain set.
        settings: how to train.
        seed: seed of the images' order and of random layers.

    Raises:
        ValueError: if a set is empty or its labels do not fit, or the loss is not finite.
    """
    _require_inputs(forget, "forget")
    _require_inputs(retain, "retain")
    own = copy.deepcopy(model).requires_grad_(True)
    device = next(own.parameters()).device
    inputs = torch.cat([forget.inputs, retain.inputs])
    labels = torch.cat([forget.labels, retain.labels])
    optimiser = torch.optim.SGD(own.parameters(), lr=settings.lr, momentum=settings.momentum)
    points = [_measure(own, forget, device)]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed("relearn", seed))
        for rows in _batches(len(labels), settings, seed):
            own.train()
            optimiser.zero_grad(set_to_none=True)
            loss = F.cross_entropy(logits(own, inputs[rows].to(device)).float(), labels[rows].to(device))
            loss.backward()
            optimiser.step()
            points.append(_measure(own, forget, device))
    accuracy, losses = np.array(points).T
    return RelearnCurve(accuracy, losses)


def compare_relearning(
    unlearned: RelearnCurve, retrained: RelearnCurve, original_loss: float
) -> RelearnComparison:
    """Compare how fast an unlearned and a retrained model learn the forget set again.

    Chundawat et al. (Zero-shot machine unlearning, arXiv 2201.05629) call the ratio of steps the anamnesis
    index; they stop at an accuracy near the original one, here the original model's loss counts.

    Args:
        unlearned: curve of the unlearned model.
        retrained: curve of the retrained model, from the same settings, sets and seed.
        original_loss: loss of the original model on the forget set, in nats: `RelearnCurve.loss` at step 0.

    Raises:
        ValueError: if the curves have different lengths, or the loss is not finite and >= 0.
    """
    if len(unlearned.loss) != len(retrained.loss):
        raise ValueError(
            f"expected curves of one length, got {len(unlearned.loss)} and {len(retrained.loss)} points; "
            "relearn both with the same settings"
        )
    if not (math.isfinite(original_loss) and original_loss >= 0):
        raise ValueError(f"expected a finite loss >= 0, got {original_loss}; take the original model's")
    steps, own = unlearned.steps_to(original_loss), retrained.steps_to(original_loss)
    ain = None if steps is None or not own else steps / own
    return RelearnComparison(steps, own, ain, unlearned.accuracy - retrained.accuracy)


def _batches(images: int, settings: Relearning, seed: int) -> Iterator[Tensor]:
    """Yield the rows of each step, int64 ``(batch_size,)``, in epochs of images drawn anew."""
    rows: np.ndarray = np.zeros(0, dtype=np.int64)
    epoch = 0
    for _ in range(settings.steps):
        while len(rows) < settings.batch_size:
            order = numpy_generator("relearn", seed, epoch).permutation(images)
            rows = np.concatenate([rows, order[: settings.images_per_epoch]])
            epoch += 1
        yield torch.from_numpy(rows[: settings.batch_size])
        rows = rows[settings.batch_size :]


@torch.no_grad()
def _measure(model: nn.Module, data: LabelledInputs, device: torch.device) -> tuple[float, float]:
    """Return the accuracy in percent and the mean loss in nats, in evaluation mode."""
    model.eval()
    right, total = 0, 0.0
    for inputs, labels in zip(
        data.inputs.split(_EVALUATION_BATCH), data.labels.split(_EVALUATION_BATCH), strict=True
    ):
        found, truth = logits(model, inputs.to(device)).double(), labels.to(device)
        right += int((found.argmax(dim=1) == truth).sum())
        total += float(F.cross_entropy(found, truth, reduction="sum"))
    if not math.isfinite(total):
        raise ValueError(
            f"expected a finite loss on the forget set, got {total}; the model diverged: check its weights, "
            "or lower the learning rate for all models"
        )
    return 100.0 * right / len(data.labels), total / len(data.labels)


def _require_inputs(data: LabelledInputs, whose: str) -> None:
    fits = data.labels.shape == data.inputs.shape[:1] and data.labels.dtype == torch.int64
    if not fits or len(data.labels) == 0:
        raise ValueError(
            f"expected a {whose} set of inputs (n, ...), n >= 1, and int64 labels (n,), got "
            f"{tuple(data.inputs.shape)} and {data.labels.dtype} {tuple(data.labels.shape)}; "
            "pass the class of each image"
        )
