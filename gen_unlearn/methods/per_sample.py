"""Gradients of single images, and the importance of weights that is made from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import Batch, cross_entropy, logits
from gen_unlearn.methods.loop import Loss, batches_of
from gen_unlearn.repro import ID_BYTES


class WithModel(nn.Module):
    """A function of a model as a module, so that `torch.func.functional_call` can exchange the weights.

    Args:
        model: the first argument of the function.
        function: is called with the model and the arguments of `forward`.
    """

    def __init__(self, model: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self._function = function

    def forward(self, *arguments: Any) -> Tensor:
        """Return the function's value."""
        return self._function(self.model, *arguments)

    def at(self, weights: dict[str, Tensor], *arguments: Any) -> Tensor:
        """Return the function's value with other weights, by the names that they have in the model."""
        found: Tensor = functional_call(self, {f"model.{n}": w for n, w in weights.items()}, arguments)
        return found


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and its modules back into their own modes afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def per_sample_gradients(
    model: nn.Module, batch: Batch, loss: Loss = cross_entropy, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Return the gradient of each image's own loss, in evaluation mode.

    Args:
        model: stays as it is; its modules need `torch.func.vmap` to work.
        batch: images ``(batch, channels, height, width)`` and labels; brought to the model's device
            and dtype.
        loss: is given batches of one image; it sees no ids.
        names: of the parameters; `None` for all.

    Returns:
        Name of a parameter -> ``(batch, *shape of the parameter)``.

    Raises:
        ValueError: a name that the model lacks.
    """
    weights = chosen_weights(model, names)
    no_ids = np.empty((0, ID_BYTES), dtype=np.uint8)
    called = WithModel(model, lambda own, x, y: loss(own, Batch(x[None], y[None], no_ids)))
    placed = place_batch(model, batch)
    with evaluation_mode(model):
        found: dict[str, Tensor] = vmap(grad(called.at), in_dims=(None, 0, 0))(
            weights, placed.inputs, placed.labels
        )
    return {name: value.detach() for name, value in found.items()}


def squared_gradient_sums(
    model: nn.Module,
    data: IndexedImages,
    loss: Loss = cross_entropy,
    *,
    microbatch: int = 16,
    budget: Budget,
) -> dict[str, Tensor]:
    """Sum the squared per-sample gradients of all images, with no more than `microbatch` in memory.

    Args:
        model: stays as it is.
        data: images; none gives zeros.
        loss: is given batches of one image.
        microbatch: images at a time; it changes the result by rounding alone.
        budget: where the images are counted.

    Returns:
        Name of a parameter -> float64 of its shape.

    Raises:
        ValueError: `microbatch` is below 1.
    """
    if microbatch < 1:
        raise ValueError(f"expected microbatch of at least 1, got {microbatch}")
    sums = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in chosen_weights(model).items()}
    for batch in batches_of(data, microbatch):
        budget.count(forward=len(batch.ids), backward=len(batch.ids))
        for name, gradients in per_sample_gradients(model, batch, loss).items():
            sums[name] += gradients.square_().sum(0, dtype=torch.float64)
    return sums


def per_sample_fisher(
    model: nn.Module,
    data: IndexedImages,
    loss: Loss = cross_entropy,
    *,
    microbatch: int = 16,
    budget: Budget,
) -> dict[str, Tensor]:
    """Return the diagonal of the empirical Fisher information: the mean of squared per-sample gradients.

    The square of a batch's mean gradient, which many implementations take, is another quantity: it shrinks
    with the batch size.

    Args:
        model: stays as it is; evaluation mode.
        data: at least one image.
        loss: is given batches of one image.
        microbatch: images at a time; it changes the result by rounding alone.
        budget: where the images are counted.

    Returns:
        Name of a parameter -> float64 of its shape, at least 0.

    Raises:
        ValueError: there is no image, or `microbatch` is below 1.
    """
    if not len(data):
        raise ValueError("expected images to take the Fisher information of, got none")
    sums = squared_gradient_sums(model, data, loss, microbatch=microbatch, budget=budget)
    return {name: total / len(data) for name, total in sums.items()}


def squared_output_norm(model: nn.Module, batch: Batch) -> Tensor:
    """Return the squared norm of the logits, the mean over the batch; labels are not read."""
    return logits(model, batch.inputs).square().sum(1).mean()


def output_norm_importance(
    model: nn.Module, data: IndexedImages, *, microbatch: int = 16, budget: Budget
) -> dict[str, Tensor]:
    """Return the mean of ``(d |f(x)|^2 / d theta)^2``, an importance of weights that needs no label.

    Foster et al., "Loss-free machine unlearning" (arXiv 2402.19308).

    Args:
        model: stays as it is; evaluation mode.
        data: at least one image.
        microbatch: images at a time.
        budget: where the images are counted.

    Returns:
        Name of a parameter -> float64 of its shape, at least 0.

    Raises:
        ValueError: there is no image, or `microbatch` is below 1.
    """
    return per_sample_fisher(model, data, squared_output_norm, microbatch=microbatch, budget=budget)


def summed_gradient(
    model: nn.Module,
    data: IndexedImages,
    loss: Loss = cross_entropy,
    *,
    batch_size: int = 256,
    budget: Budget,
) -> dict[str, Tensor]:
    """Return the sum of the gradients of all images, in evaluation mode.

    Args:
        model: stays as it is, its gradients included.
        data: images; none gives zeros.
        loss: the mean over a batch.
        batch_size: images at a time; it changes the result by rounding alone.
        budget: where the images are counted.

    Returns:
        Name of a parameter -> float64 of its shape.
    """
    weights = chosen_weights(model)
    sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
    called = WithModel(model, loss)
    with evaluation_mode(model):
        for batch in batches_of(data, batch_size):
            budget.count(forward=len(batch.ids), backward=len(batch.ids))
            found = grad(called.at)(weights, place_batch(model, batch))
            for name, gradient in found.items():
                sums[name] += gradient.double() * len(batch.ids)
    return sums


def chosen_weights(model: nn.Module, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Return parameters by name, detached, in the order of the model; `None` for all of them.

    Raises:
        ValueError: a name that the model lacks, or no name at all.
    """
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    unknown = [name for name in names or () if name not in found]
    if unknown:
        raise ValueError(f"expected names of parameters, got {unknown[0]!r}; the model has {list(found)}")
    chosen = {name: weight for name, weight in found.items() if names is None or name in names}
    if not chosen:
        raise ValueError("expected at least one parameter, got none; the model or the list of names is empty")
    return chosen


def place_batch(model: nn.Module, batch: Batch) -> Batch:
    """Bring a batch to the device of the model's first parameter, and its images to that one's dtype."""
    first = next(model.parameters())
    inputs, labels = batch.inputs.to(first.device, first.dtype), batch.labels.to(first.device)
    return batch._replace(inputs=inputs, labels=labels)
