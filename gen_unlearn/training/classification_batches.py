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
from gen_unlearn.training.gathering import rows_of_process


class ClassificationBatch(NamedTuple):
    """One process's part of a training step.

    Attributes:
        images: images to classify in [-1, 1], ``(batch, channels, height, width)``.
        labels: their classes, int64 ``(batch,)``.
        support: this process's part of the exemplars that are no images of the step, in [-1, 1],
            ``(n, channels, height, width)``.
        support_labels: classes of the exemplars of all processes, int64 ``(exemplars,)``.
        allowed: which exemplars may vote for which image, bool ``(batch, exemplars)``.
        counted: images of the whole step that have an exemplar of their class, at least 1, divided by the
            number of processes; a float32 scalar.
        mates: whether the images of the step are the exemplars, for each other.
    """

    images: Tensor
    labels: Tensor
    support: Tensor
    support_labels: Tensor
    allowed: Tensor
    counted: Tensor
    mates: bool

    def to(self, device: torch.device) -> ClassificationBatch:
        """Move everything to `device`."""
        return self._replace(
            **{name: part.to(device) for name, part in self._asdict().items() if name != "mates"}
        )


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, as pixels stay in their classes under them.

    Attributes:
        shift: greatest shift per axis in pixels; what moves in from outside is 0 in [-1, 1], middle grey.
        horizontal_flip: mirror each image with probability 1/2.
    """

    shift: int = 0
    horizontal_flip: bool = False

    def __call__(
        self, images: Tensor, draws: np.random.Generator, places: np.ndarray | None = None, count: int = 0
    ) -> Tensor:
        """Change images, each in its own way.

        Args:
            images: ``(batch, channels, height, width)``.
            draws: says how.
            places: which of `count` images that are changed together these are; `None` if they are all.
            count: see `places`.
        """
        if places is None:
            places, count = np.arange(len(images)), len(images)
        if self.shift:
            moved = draws.integers(2 * self.shift + 1, size=(2, count))[:, places]
            rows = torch.from_numpy(moved[0][:, None] + np.arange(images.shape[2]))
            columns = torch.from_numpy(moved[1][:, None] + np.arange(images.shape[3]))
            padded = F.pad(images, [self.shift] * 4).movedim(1, 3)
            which = torch.arange(len(images))[:, None, None]
            images = padded[which, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
        if self.horizontal_flip:
            mirrored = torch.from_numpy(draws.random(count)[places] < 0.5)[:, None, None, None]
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
    """Item *s* is what this process sees in step *s*.

    Attributes:
        data: the training images.
        batch_size: images of a step, over all processes.
        steps: steps of the whole run.
        seed: seed of the run.
        augmentation: random changes of all images.
        exemplars: what the exemplars of a step are; `None` for a parametric model.
        process_index: which process this is.
        num_processes: how many there are.
    """

    data: IndexedImages
    batch_size: int
    steps: int
    seed: int
    augmentation: Augmentation
    exemplars: SupportSampling | BatchMates | None
    process_index: int = 0
    num_processes: int = 1

    def __post_init__(self) -> None:
        if not len(self.data):
            raise ValueError("there is no training image")
        if self.batch_size % self.num_processes:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of the number of processes "
                f"({self.num_processes})"
            )

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> ClassificationBatch:
        if not 0 <= step < self.steps:
            raise IndexError(f"expected a step from 0 to {self.steps - 1}, got {step}")
        rows = rows_of_step(len(self.data), self.batch_size, step, self.seed)
        support = np.empty(0, dtype=np.int64)
        if isinstance(self.exemplars, SupportSampling):
            support = self.exemplars.choose(self.data, self._by_class, rows, self.seed, step)
        part = rows_of_process(len(rows), self.process_index, self.num_processes)
        of_support = rows_of_process(len(support), self.process_index, self.num_processes)
        every = np.arange(len(rows) + len(support))
        places = np.concatenate([every[: len(rows)][part], every[len(rows) :][of_support]])
        draws = numpy_generator(self.seed, "augmentation", step)
        images = to_model_input(self.data.images[np.concatenate([rows, support])[places]])
        images = self.augmentation(images, draws, places, len(every))
        if self.num_processes > 1:
            # Images that lie channels last would make gradients that do not lie like their weights.
            images = images.clone(memory_format=torch.contiguous_format)
        labels = torch.from_numpy(self.data.labels[rows])
        mates = self.exemplars is not None and not len(support)
        if mates:
            keys = id_keys(self.data.ids[rows])
            allowed, support_labels = torch.from_numpy(keys[:, None] != keys), labels
        else:
            allowed = torch.ones(len(rows), len(support), dtype=torch.bool)
            support_labels = torch.from_numpy(self.data.labels[support])
        known = (allowed & (support_labels == labels[:, None])).any(dim=1)
        counted = known.sum().clamp_min(1).float() / self.num_processes
        size = part.stop - part.start
        return ClassificationBatch(
            images[:size], labels[part], images[size:], support_labels, allowed[part], counted, mates
        )

    @cached_property
    def _by_class(self) -> list[np.ndarray]:
        """The rows of every class."""
        return [np.flatnonzero(self.data.labels == label) for label in range(len(self.data.class_names))]
