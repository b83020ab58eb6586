"""Batches of a classifier's training as a pure function of the step, see `gen_unlearn.training.batches`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from gen_unlearn.data import IndexedImages
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import id_keys, numpy_generator
from gen_unlearn.training.batches import rows_of_step


class ClassificationBatch(NamedTuple):
    """What one training step sees.

    Attributes:
        images: images to classify in [-1, 1], ``(batch, channels, height, width)``.
        labels: their classes, int64 ``(batch,)``.
        support: exemplars in [-1, 1] that are not among `images`, ``(n, channels, height, width)``.
        support_labels: classes of all exemplars, int64 ``(exemplars,)``: of `support`, or of `images` where
            these are exemplars for each other.
        allowed: which exemplars may vote for which image, bool ``(batch, exemplars)``.
    """

    images: Tensor
    labels: Tensor
    support: Tensor
    support_labels: Tensor
    allowed: Tensor

    def to(self, device: torch.device) -> ClassificationBatch:
        """Move everything to `device`."""
        return ClassificationBatch(*(part.to(device) for part in self))


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, as pixels stay in their classes under them.

    Attributes:
        shift: greatest shift per axis in pixels; what moves in from outside is 0 in [-1, 1], middle grey.
        horizontal_flip: mirror each image with probability 1/2.
    """

    shift: int = 0
    horizontal_flip: bool = False

    def __call__(self, images: Tensor, draws: np.random.Generator) -> Tensor:
        """Change images ``(batch, channels, height, width)``, each in its own way."""
        if self.shift:
            moved = draws.integers(2 * self.shift + 1, size=(2, len(images)))
            rows = torch.from_numpy(moved[0][:, None] + np.arange(images.shape[2]))
            columns = torch.from_numpy(moved[1][:, None] + np.arange(images.shape[3]))
            padded = F.pad(images, [self.shift] * 4).movedim(1, 3)
            which = torch.arange(len(images))[:, None, None]
            images = padded[which, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
        if self.horizontal_flip:
            mirrored = torch.from_numpy(draws.random(len(images)) < 0.5)[:, None, None, None]
            images = torch.where(mirrored, images.flip(3), images)
        return images


@dataclass(frozen=True)
class SupportSampling:
    """Choose the exemplars of a step: of every class, never an image of the step itself.

    No exemplar has the id of any image of the step, so that no image votes for itself or for a byte-identical
    copy. The number per class is drawn log-uniformly for each step; a smaller class gives all it has. If none
    has any, the images of the step are exemplars for each other, as `BatchMates` are.

    Attributes:
        smallest: least number of exemplars per class.
        largest: greatest number of exemplars per class.
    """

    smallest: int
    largest: int

    def choose(
        self, data: IndexedImages, by_class: list[np.ndarray], rows: np.ndarray, seed: int, step: int
    ) -> np.ndarray:
        """Return rows of `data`, class by class; `by_class` holds the rows of every class."""
        draws = numpy_generator(seed, "support", step)
        count = round(math.exp(draws.uniform(math.log(self.smallest), math.log(self.largest))))
        excluded = id_keys(data.ids[rows])
        chosen = []
        for members in by_class:
            asked = min(len(members), count + len(rows))
            drawn = members[draws.choice(len(members), asked, replace=False)] if asked else members
            chosen.append(drawn[~np.isin(id_keys(data.ids[drawn]), excluded)][:count])
        return np.concatenate(chosen)


@dataclass(frozen=True)
class BatchMates:
    """Let the images of a step be exemplars for each other, but none for itself or for its copies."""


@dataclass(frozen=True)
class ClassificationBatches(Dataset[ClassificationBatch]):
    """Item *s* is what step *s* sees.

    Attributes:
        data: the training images.
        batch_size: images of a step.
        steps: steps of the whole run.
        seed: seed of the run.
        augmentation: random changes of all images.
        exemplars: what the exemplars of a step are; `None` for a parametric model.
    """

    data: IndexedImages
    batch_size: int
    steps: int
    seed: int
    augmentation: Augmentation
    exemplars: SupportSampling | BatchMates | None

    def __post_init__(self) -> None:
        if not len(self.data):
            raise ValueError("there is no training image")

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> ClassificationBatch:
        if not 0 <= step < self.steps:
            raise IndexError(f"expected a step from 0 to {self.steps - 1}, got {step}")
        rows = rows_of_step(len(self.data), self.batch_size, step, self.seed)
        support = np.empty(0, dtype=np.int64)
        if isinstance(self.exemplars, SupportSampling):
            support = self.exemplars.choose(self.data, self._by_class, rows, self.seed, step)
        images = to_model_input(self.data.images[np.concatenate([rows, support])])
        images = self.augmentation(images, numpy_generator(self.seed, "augmentation", step))
        labels = torch.from_numpy(self.data.labels[rows])
        if self.exemplars is not None and not len(support):
            keys = id_keys(self.data.ids[rows])
            others = torch.from_numpy(keys[:, None] != keys)
            return ClassificationBatch(images, labels, images[:0], labels, others)
        support_labels = torch.from_numpy(self.data.labels[support])
        allowed = torch.ones(len(rows), len(support), dtype=torch.bool)
        return ClassificationBatch(images[: len(rows)], labels, images[len(rows) :], support_labels, allowed)

    @cached_property
    def _by_class(self) -> list[np.ndarray]:
        """The rows of every class."""
        return [np.flatnonzero(self.data.labels == label) for label in range(len(self.data.class_names))]
