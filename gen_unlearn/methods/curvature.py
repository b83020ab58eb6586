"""Products with a network's generalised Gauss-Newton matrix, and linear systems solved by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vjp

from gen_unlearn.methods.logits import Batch, logits
from gen_unlearn.methods.per_sample import WithModel, evaluation_mode, place_batch

OutputLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits ``(batch, classes)`` and labels ``(batch,)`` to a scalar, the mean over the batch."""


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return all entries of tensors, in their order, as one vector of float64."""
    return torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `flatten`: split a vector into tensors with the names, shapes and dtypes of others."""
    parts = vector.split([tensor.numel() for tensor in like.values()])
    return {n: part.reshape(t.shape).to(t.dtype) for (n, t), part in zip(like.items(), parts, strict=True)}


def ggn_product(
    model: nn.Module, batches: Sequence[Batch], weights: dict[str, Tensor], vector: Tensor, loss: OutputLoss
) -> Tensor:
    """Multiply the generalised Gauss-Newton matrix ``mean_i J_i^T (d^2 loss / d logits^2) J_i``.

    It is the Hessian of the loss of a network that is replaced by its linear approximation, never indefinite
    for a convex loss (Martens, arXiv 1412.1193). Evaluation mode.

    Args:
        model: stays as it is; needs forward-mode derivatives.
        batches: images; those of all batches weigh the same.
        weights: the parameters that the matrix is about, by name.
        vector: float64 ``(d,)``, see `flatten`.
        loss: of the logits.

    Returns:
        float64 ``(d,)``.
    """
    total, count = torch.zeros_like(vector), sum(len(batch.labels) for batch in batches)
    moved = unflatten(vector, weights)
    called = WithModel(model, logits)
    with evaluation_mode(model):
        for batch in batches:
            product = _batch_product(called, place_batch(model, batch), weights, moved, loss)
            total += flatten(product) * (len(batch.labels) / count)
    return total


def _batch_product(
    called: WithModel, batch: Batch, weights: dict[str, Tensor], moved: dict[str, Tensor], loss: OutputLoss
) -> dict[str, Tensor]:
    """Return the product with the matrix of one batch, by parameter."""

    def outputs_at(at: dict[str, Tensor]) -> Tensor:
        return called.at(at, batch.inputs)

    def loss_at(outputs: Tensor) -> Tensor:
        return loss(outputs, batch.labels)

    found = vjp(outputs_at, weights)
    outputs, pull_back = found[0], found[1]
    pushed = jvp(outputs_at, (weights,), (moved,))[1]
    curved = jvp(grad(loss_at), (outputs,), (pushed,))[1]
    product: dict[str, Tensor] = pull_back(curved)[0]
    return {name: product[name] for name in weights}


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], vector: Tensor, *, iterations: int = 100, tolerance: float = 1e-6
) -> Tensor:
    """Solve ``A x = vector`` for a symmetric, positive definite matrix.

    Args:
        product: returns ``A x``.
        vector: float64 ``(d,)``.
        iterations: most products that are taken.
        tolerance: ends when the residual's norm is below this share of the vector's.

    Returns:
        float64 ``(d,)``: the best solution within the products that were allowed.

    Raises:
        ValueError: the matrix is not positive definite.
    """
    solution, residual = torch.zeros_like(vector), vector.clone()
    direction, square = residual.clone(), residual.dot(residual)
    goal = tolerance**2 * square
    for _ in range(iterations):
        if square <= goal:
            break
        image = product(direction)
        curvature = direction.dot(image)
        if not curvature > 0:
            raise ValueError(
                f"expected a positive definite matrix, got curvature {curvature.item():.3g}; raise damping"
            )
        step = square / curvature
        solution += step * direction
        residual -= step * image
        square, previous = residual.dot(residual), square
        direction = residual + square / previous * direction
    return solution
