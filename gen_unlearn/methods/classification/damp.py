"""DAMP: project what is particular to the classes to forget out of every layer's input, without training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import frozen_teacher, logits
from gen_unlearn.methods.loop import batches_of
from gen_unlearn.methods.search_space import LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import keyed_order

_RANK_TOLERANCE = 1e-5
_PROBE_PENALTY = 1e-3

_Operator = nn.Linear | nn.Conv2d


@dataclass(frozen=True, kw_only=True)
class Damp:
    """Remove the directions of the forgotten classes before every operator (arXiv 2604.15166).

    For each Linear and each ungrouped Conv2d, in the space of its input (features or channels; the mean over
    positions): ``mu_c`` is the mean of the images to forget of class ``c``, and ``d_c`` what of it lies
    outside of the span of the mean inputs of the retained classes. With an orthonormal basis ``Q`` of all
    ``d_c``, the weight becomes ``W (I - s Q Q^T)``; biases stay. All means are those of the original.

    ``s`` is how well a linear probe tells images to forget from retained ones, ``2 * accuracy - 1`` with both
    groups weighing the same, times ``((layer + 1) / layers) ** ramp`` in the order of execution. The probe is
    a ridge regression on one half of the images, judged on the other, and the reverse. A layer whose retained
    means span its whole input stays as it is. Meant for forgotten classes; images to forget of a class that
    is also retained leave little outside of the span.

    Attributes:
        ramp: how much later layers are preferred, at least 0; 0 treats all the same.
        retained_per_class: retained images per class that are looked at, at least 1, chosen by a hash of
            their ids.
        batch_size: images that are looked at together.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = True
    ramp: float = 1.0
    retained_per_class: int = 500
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.ramp < 0 or min(self.retained_per_class, self.batch_size) < 1:
            raise ValueError(
                f"expected ramp of at least 0, and retained_per_class and batch_size of at least 1, got "
                f"{self.ramp}, {self.retained_per_class} and {self.batch_size}"
            )

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model with other weights before every operator that can be changed.

        Raises:
            ValueError: there is nothing to remove before any operator.
        """
        del seed
        network = frozen_teacher(model).to(accelerator.device)
        result = copy.deepcopy(model).to(accelerator.device)
        retain = _first_of_each_class(data.retain, self.retained_per_class)
        forget_inputs = operator_inputs(network, data.forget, self.batch_size, accelerator, budget)
        retain_inputs = operator_inputs(network, retain, self.batch_size, accelerator, budget)
        operators, probes = dict(result.named_modules()), list[float]()
        for place, name in enumerate(forget_inputs):
            found, kept = forget_inputs[name], retain_inputs[name]
            basis = damped_directions(found, data.forget.labels, kept, retain.labels)
            if not basis.shape[1]:
                continue
            probes.append(separability(found, kept))
            strength = probes[-1] * ((place + 1) / len(forget_inputs)) ** self.ramp
            operator = operators[name]
            assert isinstance(operator, nn.Linear | nn.Conv2d)
            damp(operator, basis, strength)
        if not any(probes):
            raise ValueError(
                f"expected something to remove, found nothing: of {len(forget_inputs)} layers, the means of "
                f"the retained classes span {len(forget_inputs) - len(probes)}, and a linear probe tells the "
                f"images to forget from the retained ones no better than chance in the other {len(probes)}; "
                "DAMP is for forgotten classes: choose another method for this request"
            )
        return result

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"ramp": LogUniform(0.1, 10.0)}


def operator_inputs(
    network: nn.Module, images: IndexedImages, batch_size: int, accelerator: Accelerator, budget: Budget
) -> dict[str, np.ndarray]:
    """Return the inputs of every Linear and ungrouped Conv2d, averaged over positions.

    Args:
        network: in evaluation mode.
        images: what is shown.
        batch_size: images at a time.
        accelerator: where the network is.
        budget: where forward passes are counted.

    Returns:
        Module name -> float64 ``(images, features)``, in the order of execution.

    Raises:
        ValueError: an operator is used several times for an image.
    """
    found: dict[str, list[Tensor]] = {}

    def keep(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean = inputs[0].double()
        if isinstance(module, nn.Conv2d):
            mean = mean.mean(dim=(2, 3))
        elif mean.ndim > 2:
            mean = mean.flatten(1, -2).mean(dim=1)
        found.setdefault(name, []).append(mean.cpu())

    def hook(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_pre_hook(lambda own, inputs: keep(name, own, inputs))

    handles = [hook(name, module) for name, module in network.named_modules() if _can_be_damped(module)]
    try:
        with torch.no_grad(), accelerator.autocast():
            for batch in batches_of(images, batch_size):
                budget.count(forward=len(batch.ids))
                logits(network, batch.inputs.to(accelerator.device))
    finally:
        for handle in handles:
            handle.remove()
    inputs = {name: torch.cat(parts).numpy() for name, parts in found.items()}
    repeated = [name for name, values in inputs.items() if len(values) != len(images)]
    if repeated:
        raise ValueError(
            f"expected operators that see each image once, but {repeated[0]} is used several times; "
            "DAMP does not apply to this network"
        )
    return inputs


def damped_directions(
    forget: np.ndarray, forget_labels: np.ndarray, retain: np.ndarray, retain_labels: np.ndarray
) -> np.ndarray:
    """Return an orthonormal basis of what the forgotten classes' means have outside of the retained ones'.

    Args:
        forget: inputs of an operator for the images to forget, float64 ``(n, features)``.
        forget_labels: int64 ``(n,)``.
        retain: the same for retained images, ``(m, features)``.
        retain_labels: int64 ``(m,)``.

    Returns:
        float64 ``(features, k)``, orthogonal to all retained means, one column per class at most.
    """
    means = _class_means(forget, forget_labels)
    span = _basis(_class_means(retain, retain_labels))
    outside = means - span @ (span.T @ means)
    outside -= span @ (span.T @ outside)  # Twice, so that rounding leaves nothing inside.
    large = np.linalg.norm(outside, axis=0) > _RANK_TOLERANCE * np.linalg.norm(means, axis=0)
    directions = outside[:, large]
    return _basis(directions / np.linalg.norm(directions, axis=0))


def separability(forget: np.ndarray, retain: np.ndarray) -> float:
    """Return ``2 * accuracy - 1``, at least 0, of a linear probe that tells two groups apart.

    Both groups weigh the same, in fitting and in judging. The probe is fit on the even rows and judged on
    the odd ones, and the reverse; the mean of both counts. With one image in a group it is judged on what it
    was fit on.

    Args:
        forget: float64 ``(n, features)``.
        retain: float64 ``(m, features)``.
    """
    groups = [forget, retain]
    halves = [[group[0::2] for group in groups], [group[1::2] for group in groups]]
    if min(len(group) for group in groups) < 2:
        halves = [groups, groups]
    found = []
    for fit, judge in (halves, halves[::-1]):
        weights = _probe(*fit)
        right = [
            float((sign * (_with_constant(group) @ weights) > 0).mean())
            for sign, group in zip((1, -1), judge, strict=True)
        ]
        found.append(sum(right) / 2)
    return max(0.0, 2 * float(np.mean(found)) - 1)


@torch.no_grad()
def damp(operator: _Operator, basis: np.ndarray, strength: float) -> None:
    """Replace the weight ``W`` of an operator by ``W (I - strength Q Q^T)`` over its inputs.

    Args:
        operator: changed in place; its bias stays.
        basis: ``Q``, float64 ``(features, k)`` with orthonormal columns.
        strength: 1 makes the operator blind to these directions, 0 changes nothing.
    """
    directions = torch.from_numpy(basis).to(operator.weight.device)
    weight = operator.weight.double().movedim(1, -1)
    weight -= strength * (weight @ directions) @ directions.T
    operator.weight.copy_(weight.movedim(-1, 1))


def _can_be_damped(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _first_of_each_class(images: IndexedImages, count: int) -> IndexedImages:
    """Return at most `count` images of every class, by a hash of their ids."""
    order = keyed_order(images.ids, "damp")
    labels = images.labels[order]
    rows = [order[labels == label][:count] for label in np.unique(labels)]
    return images.select(np.concatenate(rows))


def _class_means(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the mean of each class that occurs, float64 ``(features, classes)``."""
    return np.stack([inputs[labels == label].mean(axis=0) for label in np.unique(labels)], axis=1)


def _basis(columns: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the span of columns, ``(features, rank)``."""
    if not columns.shape[1]:
        return columns
    left, values, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, values > _RANK_TOLERANCE * values[0]])


def _with_constant(inputs: np.ndarray) -> np.ndarray:
    return np.hstack([inputs, np.ones((len(inputs), 1))])


def _probe(forget: np.ndarray, retain: np.ndarray) -> np.ndarray:
    """Fit a ridge regression of +1 for one group and -1 for the other, each of weight one half."""
    first, second = _with_constant(forget), _with_constant(retain)
    gram = (first.T @ first / len(first) + second.T @ second / len(second)) / 2
    penalty = _PROBE_PENALTY * np.trace(gram) / len(gram)
    difference = (first.mean(axis=0) - second.mean(axis=0)) / 2
    return np.asarray(np.linalg.solve(gram + penalty * np.eye(len(gram)), difference))
