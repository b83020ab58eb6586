"""SCRUB with rewinding: the epoch at which what is forgotten looks like what was never seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.scrub import Scrub
from gen_unlearn.methods.logits import logits
from gen_unlearn.methods.loop import batches_of
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class ScrubRewind(Scrub):
    """Run SCRUB and return the epoch whose error on forgotten images is the right one (arXiv 2302.09880).

    The right error is that of the last epoch on held-out images of the same classes, in the proportions of
    the images to forget. Of two epochs that are as close to it, the later one is returned.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain", "heldout"})
    deterministic: ClassVar[bool] = False

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model as it was after the chosen epoch.

        Raises:
            ValueError: no held-out image has a class of the images to forget.
        """
        weights = _class_weights(data)
        student = copy_of(model, accelerator)
        errors: list[float] = []
        states: list[dict[str, Tensor]] = []

        def keep(_: int) -> None:
            wrong = _errors(student, data.forget, self.batch_retain, accelerator, budget)
            errors.append(float(wrong.mean()))
            states.append({name: value.to("cpu", copy=True) for name, value in student.state_dict().items()})

        self.scrub(student, data, accelerator=accelerator, seed=seed, budget=budget, after_epoch=keep)
        comparable = data.heldout.select(weights[data.heldout.labels] > 0)
        wrong = _errors(student, comparable, self.batch_retain, accelerator, budget)
        wanted = float(np.average(wrong, weights=weights[comparable.labels]))
        student.load_state_dict(states[rewind_epoch(errors, wanted)])
        return student


def rewind_epoch(errors: list[float], wanted: float) -> int:
    """Return the epoch, from 0, whose error is closest to the one that is wanted; the last such epoch."""
    distance = np.abs(np.asarray(errors, dtype=np.float64) - wanted)
    return int(np.flatnonzero(distance == distance.min())[-1])


def _class_weights(data: UnlearnData) -> np.ndarray:
    """Return what a held-out image of each class counts, float64 ``(classes,)``."""
    forget = np.bincount(data.forget.labels, minlength=data.num_classes)
    heldout = np.bincount(data.heldout.labels, minlength=data.num_classes)
    weights = np.where(heldout > 0, forget / np.maximum(heldout, 1), 0.0)
    if not weights.any():
        raise ValueError(
            f"expected held-out images of the classes {np.flatnonzero(forget).tolist()}, got only "
            f"{np.flatnonzero(heldout).tolist()}; hold out images of every class"
        )
    return weights


@torch.no_grad()
def _errors(
    model: nn.Module, images: IndexedImages, batch_size: int, accelerator: Accelerator, budget: Budget
) -> np.ndarray:
    """Return which images are misclassified in evaluation mode, float64 ``(images,)``."""
    model.eval()
    found = []
    for batch in batches_of(images, batch_size):
        budget.count(forward=len(batch.ids))
        with accelerator.autocast():
            guess = logits(model, batch.inputs.to(accelerator.device)).argmax(dim=1)
        found.append((guess.cpu() != batch.labels).double())
    return torch.cat(found).numpy()
