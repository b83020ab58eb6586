"""What a method is, and the one way to apply it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.methods.budget import Budget, Cost
from gen_unlearn.methods.clock import Clock
from gen_unlearn.methods.search_space import Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import derive_seed, digest_state


class UnlearningMethod(Protocol):
    """A frozen dataclass of hyper-parameters that is called with a model.

    Attributes:
        needs: what data it reads; it gets nothing else.
        deterministic: whether the seed changes nothing.
    """

    needs: ClassVar[frozenset[Part]]
    deterministic: ClassVar[bool]

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a new model; the one that is given stays as it is."""

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change, by name."""


@dataclass(frozen=True)
class Unlearned:
    """An unlearned model, and what it cost."""

    model: nn.Module
    cost: Cost


def unlearn(
    method: UnlearningMethod,
    model: nn.Module,
    data: UnlearnData,
    *,
    accelerator: Accelerator,
    seed: int,
    cap: float | None = None,
) -> Unlearned:
    """Apply a method and check what every method must hold.

    The model that is given stays as it is, to the bit. The result has its training modes and
    `requires_grad`, no gradients, and other weights: other averages of batch normalisation alone do not
    count. Weights that need no gradient in the original are unlearned like all others. Global random numbers
    are seeded for the method, and put back.

    Args:
        method: what to apply.
        model: a classifier that was trained on ``data.forget`` and ``data.retain``.
        data: the request; the method sees the parts it declares to need.
        accelerator: device and precision.
        seed: of everything random.
        cap: most sample passes, see `gen_unlearn.methods.budget.Cost`.

    Raises:
        ValueError: nothing to forget; a loss or a weight is not finite; the weights did not move; the method
            changed the model that it was given; the cap is exceeded.
    """
    if not len(data.forget):
        raise ValueError("expected at least one image to forget, got none; nothing was unlearned")
    missing = [name for name in sorted(method.needs) if not len(getattr(data, name))]
    if missing:
        raise ValueError(
            f"{type(method).__name__} needs {missing[0]} images, got none; "
            "pass them, or choose another method"
        )
    before, weights = digest_state(model.state_dict()), digest_state(dict(model.named_parameters()))
    budget, name = Budget(cap), type(method).__name__
    cuda = accelerator.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(seed, "unlearn", name))
        clock = Clock(accelerator.device)
        found = method(model, data.only(method.needs), accelerator=accelerator, seed=seed, budget=budget)
        seconds = clock.seconds()
    peak = torch.cuda.max_memory_allocated(accelerator.device) if cuda else None
    if digest_state(model.state_dict()) != before:
        raise ValueError(f"{name} changed the model that it was given; it must train a copy")
    _check_result(name, found, weights)
    _restore_flags(found, model)
    return Unlearned(found, replace(budget.cost, seconds=seconds, peak_memory=peak))


def copy_of(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return a deep copy on the accelerator's device, all of it to be trained."""
    return copy.deepcopy(model).to(accelerator.device).requires_grad_(True)


def _check_result(name: str, model: nn.Module, weights: str) -> None:
    """Raise a ValueError if the state is not finite, or the weights are those of the original by digest."""
    state = model.state_dict()
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(f"{name} left weights that are not finite, the first in {broken[0]}; lower its lr")
    if digest_state(dict(model.named_parameters())) == weights:
        raise ValueError(f"{name} did not move a single weight; raise its lr, or check its settings")


def _restore_flags(model: nn.Module, original: nn.Module) -> None:
    """Give a model the training modes and `requires_grad` of another of its structure, and no gradients."""
    modes = {name: module.training for name, module in original.named_modules()}
    for name, module in model.named_modules():
        module.training = modes.get(name, original.training)
    needed = {name: parameter.requires_grad for name, parameter in original.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(needed.get(name, True))
        parameter.grad = None
