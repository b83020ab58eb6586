"""Gradients of one term alone, and losses that have a gradient that is already known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that need gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradient_of(loss: Tensor, model: nn.Module, *, keep_graph: bool = False) -> list[Tensor]:
    """Return the gradient of a loss by the parameters that need one; those of the model stay as they are.

    Args:
        loss: a scalar.
        model: whose parameters; zeros where the loss does not depend on one.
        keep_graph: whether the loss is to be differentiated again.
    """
    found = torch.autograd.grad(
        loss, trained_parameters(model), retain_graph=keep_graph, allow_unused=True, materialize_grads=True
    )
    return list(found)


def inner_product(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the sum of the products of two gradients, a scalar; float64 where the device has it."""
    wide = torch.float32 if first[0].device.type == "mps" else torch.float64
    return torch.stack(
        [(one.to(wide) * two.to(wide)).sum() for one, two in zip(first, second, strict=True)]
    ).sum()


def norm(gradient: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of a gradient, a scalar."""
    return inner_product(gradient, gradient).sqrt()


def with_gradient(value: Tensor, model: nn.Module, gradient: Sequence[Tensor | None]) -> Tensor:
    """Return a scalar of some value, whose gradient is one that is known: no second backward pass.

    Args:
        value: a scalar; its own graph is left alone.
        model: whose parameters need gradients.
        gradient: one tensor for each of these, `None` for none. They are used up: the scalar can be
            differentiated once, and that changes them, so that nothing else may share their memory.
    """
    parameters = trained_parameters(model)
    assert len(parameters) == len(gradient)
    found: Tensor = _KnownGradient.apply(value.detach(), gradient, *parameters)
    return found


class _KnownGradient(torch.autograd.Function):
    """The first argument, with the second one as its gradient by the others."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: Sequence[Tensor | None], *_: Tensor) -> Tensor:
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        return None, None, *(None if part is None else part.mul_(outer) for part in gradient)


def ratio_factor(size: Tensor | float, forget_norm: Tensor, largest: float) -> Tensor:
    """Return what gives the gradient of the forget set a norm: ``min(size / |g_a|, largest)``.

    It is finite for a gradient of 0, and then for a size of 0 as well.
    """
    tiny = torch.finfo(forget_norm.dtype).tiny
    return (size / forget_norm.clamp(min=tiny)).clamp(max=largest)
