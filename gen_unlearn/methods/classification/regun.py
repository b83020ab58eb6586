"""ReGUn: images to forget are answered as images that the original has never seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import Batch, Teacher, cross_entropy, logits
from gen_unlearn.methods.loop import LoopSettings, batches_of
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import keyed_words


@dataclass(frozen=True, kw_only=True)
class ReGUn(LoopSettings):
    """Minimise ``forget_weight KL(q || p(forget)) + retain_weight CE(retain)`` (arXiv 2603.11210).

    ``q`` is one distribution for a batch of images to forget: the mean of what the frozen original answers
    for held-out images of the same classes, as many of each as the batch has. An epoch goes once through the
    longer of the two parts; the shorter is gone through again and again.

    Attributes:
        forget_weight: of the divergence, at least 0.
        retain_weight: of the cross-entropy, at least 0.
        temperature: of both distributions, above 0; the divergence is multiplied with its square.
        reference: ``"drawn"``, each image of a batch draws one held-out image of its class, by a hash of id,
            seed, epoch and step; or ``"class_means"``, the mean over all held-out images of its class, which
            is what the draws have on average.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain", "heldout"})
    deterministic: ClassVar[bool] = False
    forget_weight: float = 0.5
    retain_weight: float = 0.5
    temperature: float = 1.0
    reference: Literal["drawn", "class_means"] = "drawn"

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.forget_weight, self.retain_weight) < 0 or not self.temperature > 0:
            raise ValueError(
                f"expected weights of at least 0 and a temperature above 0, got {self.forget_weight}, "
                f"{self.retain_weight} and {self.temperature}"
            )

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model.

        Raises:
            ValueError: a class to forget images of has no held-out image.
        """
        student = copy_of(model, accelerator)
        teacher = Teacher(student, budget)
        heldout = [
            F.softmax(teacher(batch.inputs.to(accelerator.device)).double() / self.temperature, dim=1)
            for batch in batches_of(data.heldout, self.batch_retain)
        ]
        answers = Reference(torch.cat(heldout), data.heldout, data.forget, seed)

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            target = (answers.drawn if self.reference == "drawn" else answers.class_means)(batch)
            own = F.log_softmax(logits(network, batch.inputs).float() / self.temperature, dim=1)
            divergence = F.kl_div(own, target.to(own).expand_as(own), reduction="batchmean")
            return self.temperature**2 * divergence

        both = [
            self.forget_term(data.forget, loss, self.forget_weight),
            self.retain_term(data.retain, cross_entropy, self.retain_weight),
        ]
        self.run(student, lambda _: [both], accelerator=accelerator, seed=seed, budget=budget)
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-4, 1e-1),
            "forget_weight": Choice((0.1, 0.25, 0.5, 1.0, 2.0)),
            "epochs": Choice((3, 5, 10)),
        }


class Reference:
    """What the original answers for held-out images, by their class.

    Args:
        probabilities: of the held-out images, float64 ``(heldout, classes)``.
        heldout: the held-out images.
        forget: the images to forget.
        seed: of draws.

    Raises:
        ValueError: a class to forget images of has no held-out image.
    """

    def __init__(
        self, probabilities: Tensor, heldout: IndexedImages, forget: IndexedImages, seed: int
    ) -> None:
        self._probabilities, self._seed = probabilities, seed
        self._rows = {
            label: np.flatnonzero(heldout.labels == label) for label in np.unique(forget.labels).tolist()
        }
        empty = [heldout.class_names[label] for label, rows in self._rows.items() if not len(rows)]
        if empty:
            raise ValueError(
                f"expected held-out images of every class to forget, got none of class {empty[0]}; "
                "hold out images of all classes"
            )

    def drawn(self, batch: Batch) -> Tensor:
        """Return the mean over one drawn held-out image for each of a batch, ``(1, classes)``."""
        words = keyed_words(batch.ids, "reference", self._seed, batch.epoch, batch.step)
        rows = [
            int(self._rows[label][int(word) % len(self._rows[label])])
            for word, label in zip(words, batch.labels.tolist(), strict=True)
        ]
        return self._probabilities[rows].mean(dim=0, keepdim=True)

    def class_means(self, batch: Batch) -> Tensor:
        """Return the mean over all held-out images of the classes, weighted as a batch, ``(1, classes)``."""
        means = [self._probabilities[self._rows[label]].mean(dim=0) for label in batch.labels.tolist()]
        return torch.stack(means).mean(dim=0, keepdim=True)
