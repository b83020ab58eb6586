"""Which weights matter for some images, and masks of the most salient ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import logits
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.per_sample import evaluation_mode, per_sample_fisher
from gen_unlearn.repro import numpy_generator
from gen_unlearn.training.classification_batches import Augmentation

SaliencyKind = Literal["abs_sum", "sum_abs", "fisher"]
"""``|sum of g_b|`` or ``sum of |g_b|`` over the gradients of batches, or the mean of squared gradients of
single images."""

Scope = Literal["global", "layer"]
"""Whether weights compete with all others, or with those of their own tensor."""


def saliency(
    model: nn.Module,
    data: IndexedImages,
    kind: SaliencyKind,
    *,
    batch_size: int,
    accelerator: Accelerator,
    budget: Budget,
    augment: Augmentation | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return how much every weight matters for the cross-entropy of some images, in evaluation mode.

    Gradients are summed over images, so that ``"abs_sum"`` does not depend on the batch size; to sum the mean
    gradients of batches, as published code does, would weigh the images of a smaller last batch more.
    ``"sum_abs"`` depends on the batch size by its definition.

    Args:
        model: stays as it is, also its modes; on the accelerator's device, every weight needs a gradient.
        data: each image is read once, in its order.
        kind: what is measured.
        batch_size: images of a batch.
        accelerator: device and precision.
        budget: where samples are counted.
        augment: random changes of images; not for ``"fisher"``.
        seed: of these changes.

    Returns:
        Name of a parameter -> a tensor of its shape, at least 0.

    Raises:
        ValueError: no image, or changes of images for ``"fisher"``.
    """
    if not len(data):
        raise ValueError("expected images to measure saliency on, got none")
    if kind == "fisher":
        if augment not in (None, Augmentation()):
            raise ValueError(f"expected no changes of images for fisher, got {augment}; choose another kind")
        return per_sample_fisher(model, data, microbatch=min(batch_size, 16), budget=budget)
    parameters = dict(model.named_parameters())
    totals = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    with evaluation_mode(model):
        for step, start in enumerate(range(0, len(data), batch_size)):
            rows = np.arange(start, min(start + batch_size, len(data)))
            batch = batch_of(data, rows, augment, numpy_generator(seed, "saliency", step))
            budget.count(forward=len(rows), backward=len(rows))
            with accelerator.autocast():
                found = logits(model, batch.inputs.to(accelerator.device)).float()
                loss = F.cross_entropy(found, batch.labels.to(accelerator.device), reduction="sum")
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    totals[name] += gradient if kind == "abs_sum" else gradient.abs()
    return {name: total.abs() for name, total in totals.items()}


def top_mask(scores: Mapping[str, Tensor], keep: float, scope: Scope = "global") -> dict[str, Tensor]:
    """Mark the weights with the highest scores: exactly ``round(keep n)`` of n, halves up.

    Of equal scores those come first whose tensor, in the order of `scores`, and whose place in it come first.

    Args:
        scores: name -> scores of any shape.
        keep: share to mark, in [0, 1].
        scope: whether n are all weights, or those of each tensor.

    Returns:
        Name -> bool tensor of the same shape.

    Raises:
        ValueError: `keep` is out of range, or a score is not a number.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"expected keep from 0 to 1, got {keep}")
    for name, score in scores.items():
        if score.isnan().any():
            raise ValueError(f"expected scores, got some in {name} that are not numbers; check the model")
    if scope == "layer":
        return {name: _top(score.reshape(-1), keep).reshape(score.shape) for name, score in scores.items()}
    marked = _top(torch.cat([score.reshape(-1) for score in scores.values()]), keep)
    parts = marked.split([score.numel() for score in scores.values()])
    return {n: part.reshape(s.shape) for (n, s), part in zip(scores.items(), parts, strict=True)}


def _top(scores: Tensor, keep: float) -> Tensor:
    """Mark the highest of scores ``(n,)``; of equal ones the first."""
    count = math.floor(keep * len(scores) + 0.5)
    if count in (0, len(scores)):
        return torch.full_like(scores, bool(count), dtype=torch.bool)
    lowest = scores.kthvalue(len(scores) - count + 1).values
    marked = scores > lowest
    ties = (scores == lowest).nonzero()[: count - int(marked.sum()), 0]
    marked[ties] = True
    return marked
