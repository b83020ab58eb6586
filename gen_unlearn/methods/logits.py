"""Logits of any classifier, and the losses that methods share."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget


class Batch(NamedTuple):
    """What one term of a step sees.

    Attributes:
        inputs: images in [-1, 1], float32 ``(batch, channels, height, width)``.
        labels: int64 ``(batch,)``.
        ids: content ids, uint8 ``(batch, 16)``, on the CPU.
        epoch: from 0.
        step: of this epoch, from 0.
    """

    inputs: Tensor
    labels: Tensor
    ids: np.ndarray
    epoch: int = 0
    step: int = 0


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return logits ``(batch, classes)`` of a plain module or of a transformers model.

    Raises:
        ValueError: the model returns neither a matrix nor an object with `logits`.
    """
    found = model(inputs)
    found = getattr(found, "logits", found)
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise ValueError(
            f"expected logits (batch, classes), got {type(found).__name__} from {type(model).__name__}; "
            "wrap the model so that it returns logits"
        )
    return found


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of a batch."""
    return F.cross_entropy(logits(model, batch.inputs).float(), batch.labels)


def frozen_teacher(model: nn.Module) -> nn.Module:
    """Return a deep copy in evaluation mode that needs no gradient.

    Raises:
        ValueError: the copy shares memory with the model, as a copy of tied or of shared tensors may.
    """
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values() if tensor.numel()}
    for name, tensor in teacher.state_dict().items():
        if tensor.numel() and tensor.untyped_storage().data_ptr() in own:
            raise ValueError(f"expected a copy of its own, but {name} shares memory with the model")
    return teacher


class Teacher:
    """A frozen model whose forward passes count.

    Args:
        model: is copied; training the original does not move the teacher.
        budget: where its forward passes are counted.
    """

    def __init__(self, model: nn.Module, budget: Budget) -> None:
        self.model = frozen_teacher(model)
        self._budget = budget

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return logits ``(batch, classes)``."""
        self._budget.count(forward=len(inputs))
        with torch.no_grad():
            return logits(self.model, inputs)


def kd_loss(*, teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``T^2 KL(softmax(teacher / T) || softmax(student / T))``, the mean over the batch.

    Hinton et al. (arXiv 1503.02531): the gradient, into the student alone, has about the same size for every
    temperature.

    Args:
        teacher: logits ``(batch, classes)``.
        student: logits ``(batch, classes)``.
        temperature: above 0.
    """
    target = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    own = F.log_softmax(student.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(own, target, reduction="batchmean", log_target=True)


class Distance:
    """`kd_loss` to a teacher, which remembers whether a student ever differed from it.

    Args:
        teacher: what the student is compared with.
        temperature: of `kd_loss`.
    """

    def __init__(self, teacher: Teacher, temperature: float) -> None:
        self._teacher, self._temperature = teacher, temperature
        self._differed: Tensor | None = None

    def __call__(self, student: nn.Module, batch: Batch) -> Tensor:
        """Return the distance of a student on a batch, the mean over the batch."""
        target, own = self._teacher(batch.inputs), logits(student, batch.inputs)
        differs = (own.detach() != target).any()
        self._differed = differs if self._differed is None else self._differed | differs
        return kd_loss(teacher=target, student=own, temperature=self._temperature)

    def check(self, remedy: str) -> None:
        """Raise a ValueError if the student was compared, and had the teacher's logits to the bit each time.

        A distance that is 0 throughout has no gradient. It is 0 in the first steps of a student that starts
        as its teacher, so that this is asked when all is done.

        Args:
            remedy: what the message tells to do.
        """
        if self._differed is not None and not self._differed:
            raise ValueError(
                "expected a student that leaves its teacher, but their distance was 0 in every step; "
                f"{remedy}"
            )
