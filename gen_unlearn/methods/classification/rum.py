"""RUM: images to forget by how much they were memorised, each group with a method of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.fine_tune import FineTune
from gen_unlearn.methods.classification.negative_gradient import NegGradPlus
from gen_unlearn.methods.classification.random_labels import RandomLabels
from gen_unlearn.methods.classification.saliency_unlearning import SaliencyUnlearning
from gen_unlearn.methods.literals import check_literals
from gen_unlearn.methods.logits import frozen_teacher, logits
from gen_unlearn.methods.loop import batches_of
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import derive_seed, id_keys

Refinement = Literal["memorisation", "entanglement"]
"""What images to forget are grouped by."""

PartMethod = Literal["none", "fine-tune", "random-labels", "salun", "neggrad-plus"]
"""Methods of a group, by their names in recipes."""

LoopMethod = FineTune | RandomLabels | SaliencyUnlearning | NegGradPlus

_METHODS: dict[str, type[LoopMethod]] = {
    "fine-tune": FineTune,
    "random-labels": RandomLabels,
    "salun": SaliencyUnlearning,
    "neggrad-plus": NegGradPlus,
}

PARTS = 3
"""Groups: low, middle, high."""


@dataclass(frozen=True, kw_only=True)
class Rum:
    """Unlearn three groups one after the other, from low to high (Zhao et al., arXiv 2406.01257).

    The published scores need many retrained models. These are proxies from the original alone, the first as
    in arXiv 2410.16516:

    - ``"memorisation"``: minus the margin ``z_y - logsumexp of the others``. What a model is least sure of
      although it was trained on it is what it had to memorise;
    - ``"entanglement"``: minus the distance of the logits to the mean logits of the retained images.

    Groups are equally large; what is left over goes to the high one. Every method sees the images of its own
    group as those to forget, and the retained images; images of the other groups are in neither. The cost is
    the sum of all, with the forward passes of the proxy.

    Attributes:
        refinement: what groups are made by.
        methods: of the low, the middle and the high group; ``"none"`` leaves a group to what the others
            forget on the way. All other settings of a method are its defaults.
        lr: learning rate of each, above 0; unused with ``"none"``.
        epochs: of each, at least 1.
        lr_factor: what all three learning rates are multiplied with, above 0.
        batch_forget: images to forget of a step.
        batch_retain: retained images of a step, and images that the proxy looks at together.

    Raises:
        ValueError: a number is out of range, or there is no method at all.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    refinement: Refinement = "memorisation"
    methods: tuple[PartMethod, PartMethod, PartMethod] = ("none", "fine-tune", "salun")
    lr: tuple[float, float, float] = (0.01, 0.01, 0.013)
    epochs: tuple[int, int, int] = (5, 5, 5)
    lr_factor: float = 1.0
    batch_forget: int = 64
    batch_retain: int = 64

    def __post_init__(self) -> None:
        check_literals(self)
        for name in ("methods", "lr", "epochs"):
            if len(getattr(self, name)) != PARTS:
                raise ValueError(f"expected {name} of three groups, got {getattr(self, name)}")
        unknown = [name for name in self.methods if name not in (*_METHODS, "none")]
        if unknown:
            raise ValueError(f"expected methods out of none, {', '.join(_METHODS)}, got {unknown[0]!r}")
        if set(self.methods) == {"none"}:
            raise ValueError("expected a method for one group or more, got none; nothing would be unlearned")
        if not self.lr_factor > 0:
            raise ValueError(f"expected lr_factor above 0, got {self.lr_factor}")
        _ = [self.method_of(group) for group in range(PARTS)]

    def method_of(self, group: int) -> LoopMethod | None:
        """Return the method of a group, 0 for low to 2 for high; `None` for none."""
        name = self.methods[group]
        if name == "none":
            return None
        return _METHODS[name](
            lr=self.lr_factor * self.lr[group],
            epochs=self.epochs[group],
            batch_forget=self.batch_forget,
            batch_retain=self.batch_retain,
        )

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after all methods."""
        student = copy_of(model, accelerator)
        scores = self._scores(student, data, accelerator, budget)
        nothing = data.retain.select(np.empty(0, dtype=np.int64))
        groups = in_thirds(scores, data.forget.ids)
        for number, rows in enumerate(groups):
            method = self.method_of(number)
            if method is None or not len(rows):
                continue
            part = UnlearnData(data.forget.select(rows), data.retain, nothing)
            student = method(
                student,
                part.only(method.needs),
                accelerator=accelerator,
                seed=derive_seed(seed, "rum", number),
                budget=budget,
            )
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "refinement": Choice(("memorisation", "entanglement")),
            "methods": Choice(
                (
                    ("none", "fine-tune", "salun"),
                    ("none", "fine-tune", "neggrad-plus"),
                    ("fine-tune", "salun", "salun"),
                )
            ),
            "lr_factor": LogUniform(0.1, 10.0),
        }

    def _scores(
        self, model: nn.Module, data: UnlearnData, accelerator: Accelerator, budget: Budget
    ) -> np.ndarray:
        """Return the proxy of every image to forget, float64 ``(n,)``."""
        network = frozen_teacher(model)
        found = _all_logits(network, data.forget, self.batch_retain, accelerator, budget)
        if self.refinement == "memorisation":
            return -margins(found, data.forget.labels)
        retained = _all_logits(network, data.retain, self.batch_retain, accelerator, budget)
        return -np.asarray(np.linalg.norm(found - retained.mean(axis=0), axis=1))


def margins(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return ``z_y - logsumexp of all other logits``, float64 ``(n,)``.

    Args:
        scores: logits, ``(n, classes)``.
        labels: int64 ``(n,)``.
    """
    scores = scores.astype(np.float64)
    rows = np.arange(len(labels))
    own, others = scores[rows, labels], scores.copy()
    others[rows, labels] = -np.inf
    return np.asarray(own - np.logaddexp.reduce(others, axis=1))


def in_thirds(scores: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
    """Return the rows of the low, the middle and the high third of some scores.

    Args:
        scores: float64 ``(n,)``; equal ones are ordered by id.
        ids: uint8 ``(n, 16)``.

    Returns:
        Three int64 arrays; the last has what is left over.
    """
    order = np.lexsort((id_keys(ids), scores))
    size = len(order) // PARTS
    return [order[:size], order[size : 2 * size], order[2 * size :]]


@torch.no_grad()
def _all_logits(
    network: nn.Module, images: IndexedImages, batch_size: int, accelerator: Accelerator, budget: Budget
) -> np.ndarray:
    """Return logits of all images, float64 ``(n, classes)``."""
    found = []
    for batch in batches_of(images, batch_size):
        budget.count(forward=len(batch.ids))
        with accelerator.autocast():
            found.append(logits(network, batch.inputs.to(accelerator.device)).double().cpu())
    return torch.cat(found).numpy()
