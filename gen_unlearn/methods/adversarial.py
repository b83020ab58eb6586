"""Adversarial examples: images a little beside others that a classifier gets wrong.

Distances are those of images in [0, 1], as papers give them. Networks see images in [-1, 1], which is twice
as wide: a distance of 0.1 is 0.2 there.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import logits

INPUT_SCALE = 2.0
"""How much longer a distance is between images in [-1, 1] than between the same in [0, 1]."""

Norm = Literal["l2", "linf"]
"""How far two images are apart: the root of the sum of squares, or the greatest difference of a pixel."""

Stop = Literal["first_wrong", "last"]
"""When a search ends: once the classifier is wrong, so that the image is near, or after all its steps."""


class Nearest(NamedTuple):
    """Adversarial examples, and what the classifier takes them for.

    Attributes:
        inputs: in [-1, 1], ``(batch, channels, height, width)``.
        predicted: most likely class of each, int64 ``(batch,)``.
        found: whether that is a wrong one, bool ``(batch,)``.
    """

    inputs: Tensor
    predicted: Tensor
    found: Tensor


def fgsm(model: nn.Module, inputs: Tensor, labels: Tensor, *, epsilon: float, budget: Budget) -> Tensor:
    """Take one step up the loss with the sign of its gradient (Goodfellow et al., arXiv 1412.6572).

    Args:
        model: in evaluation mode.
        inputs: in [-1, 1], ``(batch, channels, height, width)``.
        labels: int64 ``(batch,)``.
        epsilon: change of every pixel, for images in [0, 1]; above 0.
        budget: one pass forward and one backward are counted for each image.

    Returns:
        Images in [-1, 1].
    """
    _check(model, epsilon)
    gradient, _ = _loss_gradient(model, inputs, labels, budget)
    return (inputs + INPUT_SCALE * epsilon * gradient.sign()).clamp(-1, 1)


def pgd(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    norm: Norm = "l2",
    stop: Stop = "last",
    budget: Budget,
) -> Tensor:
    """Climb the loss inside a ball around every image (Madry et al., arXiv 1706.06083), from its centre.

    Args:
        model: in evaluation mode.
        inputs: in [-1, 1], ``(batch, channels, height, width)``.
        labels: int64 ``(batch,)``.
        epsilon: radius of the ball, for images in [0, 1]; above 0.
        steps: most steps, at least 1.
        step_size: length of a step, for images in [0, 1]; above 0.
        norm: of the ball and of the steps.
        stop: ``"first_wrong"`` leaves an image where the model is wrong first; the last step is not looked
            at. ``"last"`` takes all steps.
        budget: what is evaluated is counted.

    Returns:
        Images in [-1, 1].
    """
    _check(model, epsilon)
    if steps < 1 or not step_size > 0:
        raise ValueError(f"expected at least 1 step, above 0 in size, got {steps} steps of {step_size}")
    moved = inputs.clone()
    active = torch.arange(len(inputs), device=inputs.device)
    for _ in range(steps):
        gradient, predicted = _loss_gradient(model, moved[active], labels[active], budget)
        if stop == "first_wrong":
            right = predicted == labels[active]
            active, gradient = active[right], gradient[right]
        if not len(active):
            break
        ahead = moved[active] + INPUT_SCALE * step_size * _direction(gradient, norm)
        moved[active] = _project(ahead, inputs[active], INPUT_SCALE * epsilon, norm)
    return moved


def nearest_adversarial(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    doublings: int,
    steps: int,
    norm: Norm = "l2",
    stop: Stop = "first_wrong",
    budget: Budget,
) -> Nearest:
    """Search in a small ball, and in one twice as large for the images where nothing was found.

    Steps are a tenth of the radius, as in AMUN (arXiv 2503.00917). An image that the model gets wrong already
    is an adversarial example of itself with ``stop="first_wrong"``.

    Args:
        model: in evaluation mode.
        inputs: in [-1, 1], ``(batch, channels, height, width)``.
        labels: int64 ``(batch,)``.
        epsilon: first radius, for images in [0, 1].
        doublings: how often the radius is doubled at most, at least 0.
        steps: of `pgd` in every ball.
        norm: of the balls.
        stop: see `pgd`.
        budget: what is evaluated is counted.
    """
    if doublings < 0:
        raise ValueError(f"expected doublings of at least 0, got {doublings}")
    found = Nearest(inputs.clone(), labels.clone(), torch.zeros_like(labels, dtype=torch.bool))
    for doubling in range(doublings + 1):
        radius = epsilon * 2**doubling
        rows = torch.nonzero(~found.found).squeeze(1)
        if not len(rows):
            break
        found.inputs[rows] = pgd(
            model,
            inputs[rows],
            labels[rows],
            epsilon=radius,
            steps=steps,
            step_size=0.1 * radius,
            norm=norm,
            stop=stop,
            budget=budget,
        )
        found.predicted[rows] = predict(model, found.inputs[rows], budget)
        found.found[rows] = found.predicted[rows] != labels[rows]
    return found


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, budget: Budget) -> Tensor:
    """Return the most likely class of every image, int64 ``(batch,)``; counts one pass forward."""
    budget.count(forward=len(inputs))
    return logits(model, inputs).argmax(dim=1)


def _check(model: nn.Module, epsilon: float) -> None:
    """Raise a ValueError for a model in training mode or a radius that is not above 0."""
    if model.training:
        raise ValueError("expected a model in evaluation mode, since batches must not change it; call eval()")
    if not epsilon > 0:
        raise ValueError(f"expected epsilon above 0, got {epsilon}")


def _loss_gradient(model: nn.Module, inputs: Tensor, labels: Tensor, budget: Budget) -> tuple[Tensor, Tensor]:
    """Return the gradient of every image's cross-entropy, and the most likely classes."""
    budget.count(forward=len(inputs), backward=len(inputs))
    with torch.enable_grad():
        leaf = inputs.detach().clone().requires_grad_(True)
        found = logits(model, leaf).float()
        (gradient,) = torch.autograd.grad(F.cross_entropy(found, labels, reduction="sum"), leaf)
    return gradient, found.detach().argmax(dim=1)


def _lengths(images: Tensor) -> Tensor:
    """Return the Euclidean length of every image, ``(batch, 1, 1, 1)``, never 0."""
    return images.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None, None]


def _direction(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the steepest step of length 1; none where the gradient is 0."""
    if norm == "linf":
        return gradient.sign()
    largest = gradient.flatten(1).abs().amax(dim=1).clamp_min(1e-37)[:, None, None, None]
    scaled = gradient / largest
    return scaled / _lengths(scaled)


def _project(moved: Tensor, centre: Tensor, radius: float, norm: Norm) -> Tensor:
    """Return the points in the ball and in [-1, 1]; `radius` is for images in [-1, 1]."""
    change = moved - centre
    if norm == "linf":
        change = change.clamp(-radius, radius)
    else:
        change = change * (radius / _lengths(change)).clamp_max(1.0)
    return (centre + change).clamp(-1, 1)
