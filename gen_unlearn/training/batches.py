"""Training batches as a pure function of the step.

Everything random about step *s* (which images, noise, timesteps, exemplars, dropout) is derived by hashing
from the run's seed and *s*, for the whole batch of all processes. So a resumed run needs no generator state,
and a run on two processes sees what a run on one sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.models.fusion import NULL_GROUP, plan_fusion
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import id_keys, numpy_generator, torch_generator

Conditioning = Callable[[np.ndarray, slice, int], Mapping[str, Any]]
"""``(rows of the whole batch, part of this process, step) -> keyword arguments of the network``."""


class DiffusionBatch(NamedTuple):
    """One process's part of a training step.

    Attributes:
        images: clean images in [-1, 1], ``(batch, channels, height, width)``.
        noise: standard normal, like `images`.
        timesteps: int64 ``(batch,)``.
        conditioning: further arguments of the network: tensors and plans.
    """

    images: Tensor
    noise: Tensor
    timesteps: Tensor
    conditioning: dict[str, Any]

    def to(self, device: torch.device) -> DiffusionBatch:
        """Move everything to `device`."""
        conditioning = {name: value.to(device) for name, value in self.conditioning.items()}
        return DiffusionBatch(
            self.images.to(device), self.noise.to(device), self.timesteps.to(device), conditioning
        )


@dataclass(frozen=True)
class DiffusionBatches(Dataset[DiffusionBatch]):
    """Item *i* is micro-batch *i* of this process; ``accumulation`` of them make a step.

    Attributes:
        data: the training images.
        conditioning: how the network learns what to generate.
        batch_size: images of a step, over all processes and micro-batches.
        steps: steps of the whole run.
        num_timesteps: length of the noise schedule.
        seed: seed of the run.
        horizontal_flip: mirror each training image with probability 1/2; exemplars are never mirrored.
        reorientation: how often a class is turned in a step; see `Orientations`.
        accumulation: micro-batches of a step.
        process_index: which process this is.
        num_processes: how many there are.
    """

    data: IndexedImages
    conditioning: Conditioning
    batch_size: int
    steps: int
    num_timesteps: int
    seed: int
    horizontal_flip: bool = False
    reorientation: float = 0.0
    accumulation: int = 1
    process_index: int = 0
    num_processes: int = 1

    def __post_init__(self) -> None:
        parts = self.accumulation * self.num_processes
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro-batches x processes "
                f"({self.accumulation} x {self.num_processes})"
            )
        if not len(self.data):
            raise ValueError("there is no training image")

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __getitem__(self, index: int) -> DiffusionBatch:
        if not 0 <= index < len(self):
            raise IndexError(f"expected a micro-batch from 0 to {len(self) - 1}, got {index}")
        step, micro = divmod(index, self.accumulation)
        size = self.batch_size // (self.accumulation * self.num_processes)
        start = (micro * self.num_processes + self.process_index) * size
        part = slice(start, start + size)

        rows = rows_of_step(len(self.data), self.batch_size, step, self.seed)
        images = to_model_input(self.data.images[rows[part]])
        labels, orientations = self.data.labels[rows[part]], Orientations(self.seed, self.reorientation)
        for label in np.unique(labels) if self.reorientation else ():
            images[labels == label] = orientations.turn(images[labels == label], step, int(label))
        if self.horizontal_flip:
            mirrored = numpy_generator(self.seed, "flip", step).random(self.batch_size)[part] < 0.5
            images = torch.where(torch.from_numpy(mirrored)[:, None, None, None], images.flip(3), images)
        draws = torch_generator(self.seed, "noise", step)
        timesteps = torch.randint(0, self.num_timesteps, (self.batch_size,), generator=draws)
        noise = torch.randn(self.batch_size, *images.shape[1:], generator=draws)
        return DiffusionBatch(images, noise[part], timesteps[part], dict(self.conditioning(rows, part, step)))


def rows_of_step(count: int, batch_size: int, step: int, seed: int, steps: int = 1) -> np.ndarray:
    """Return the rows of steps, int64 ``(steps * batch_size,)``, from an endless row of shuffled passes.

    Args:
        count: rows of the data.
        batch_size: rows of a step.
        step: which step is the first.
        seed: seed of the run.
        steps: how many steps; their rows follow each other.
    """
    first, last = step * batch_size, (step + steps) * batch_size
    passes = range(first // count, (last - 1) // count + 1)
    shuffled = np.concatenate(
        [numpy_generator(seed, "order", number).permutation(count) for number in passes]
    )
    offset = passes.start * count
    return shuffled[first - offset : last - offset]


@dataclass(frozen=True)
class Orientations:
    """The orientation of every class in every step: images of a step and their exemplars turn together.

    Attributes:
        seed: seed of the run.
        share: probability that one of the eight orientations of the square is drawn; else a class stays as
            it is.
    """

    seed: int
    share: float

    def turn(self, images: Tensor, step: int, label: int) -> Tensor:
        """Turn square images of one class, ``(batch, channels, side, side)``."""
        draws = numpy_generator(self.seed, "orientation", step, label)
        if draws.random() >= self.share:
            return images
        quarters, mirrored = divmod(int(draws.integers(8)), 2)
        turned = torch.rot90(images, quarters, dims=(2, 3))
        return turned.flip(3) if mirrored else turned


@dataclass(frozen=True)
class ClassConditioning:
    """Tell the network the class; sometimes the null label, for classifier-free guidance.

    Attributes:
        labels: class of each training image, int64 ``(n,)``.
        num_classes: number of classes, and the index of the null label.
        dropout: probability of the null label.
        seed: seed of the run.
    """

    labels: np.ndarray
    num_classes: int
    dropout: float
    seed: int

    def __call__(self, rows: np.ndarray, part: slice, step: int) -> dict[str, Tensor]:
        """Return ``class_labels`` for this process's part."""
        dropped = numpy_generator(self.seed, "label dropout", step).random(len(rows)) < self.dropout
        labels = np.where(dropped, self.num_classes, self.labels[rows])
        return {"class_labels": torch.from_numpy(labels[part])}


@dataclass(frozen=True)
class ExemplarConditioning:
    """Show the network exemplars of the image's class, never the image itself.

    No exemplar of a step has the id of any image of that step, so an image is fused neither with itself
    nor with a byte-identical copy. The number of exemplars per class is drawn log-uniformly for each step;
    a class with fewer gives all it has. A dropped query sees the null token.

    Exemplars may stay for several steps: then they are those of every class that these steps show, and have
    the id of no image of any of them.

    Attributes:
        data: the training images.
        store: the exemplars to choose from.
        smallest: least number of exemplars per class.
        largest: greatest number of exemplars per class.
        dropout: probability that a query sees no exemplars.
        label_slots: size of the network's label embedding, or `None`. Classes are given slots by
            a new permutation each step, so that a slot means no class in particular.
        label_dropout: probability of the null label; only with `label_slots`.
        seed: seed of the run.
        reorientation: how often a class is turned in a step; see `Orientations`.
        refresh_steps: steps for which exemplars stay.
    """

    data: IndexedImages
    store: ExemplarStore
    smallest: int
    largest: int
    dropout: float
    label_slots: int | None
    label_dropout: float
    seed: int
    reorientation: float = 0.0
    refresh_steps: int = 1

    def __call__(self, rows: np.ndarray, part: slice, step: int) -> dict[str, Any]:
        """Return ``exemplars`` and their ``plan`` for this process's part, and ``class_labels`` if used."""
        labels, first, shown = self.data.labels[rows][part], step, rows
        groups = np.unique(labels)
        if self.refresh_steps > 1:
            first = step - step % self.refresh_steps
            shown = rows_of_step(len(self.data), len(rows), first, self.seed, self.refresh_steps)
            groups = np.unique(self.data.labels[shown])
        count, _ = self._count(first)
        _, draws = self._count(step)
        dropped = (draws.random(len(rows)) < self.dropout)[part]
        excluded = id_keys(self.data.ids[shown])
        chosen = [self._choose(int(label), count, excluded, first) for label in groups]
        ends = np.cumsum([len(members) for members in chosen])
        positions = np.split(np.arange(ends[-1]), ends[:-1])
        group_of_query = np.where(dropped, NULL_GROUP, np.searchsorted(groups, labels))
        arguments: dict[str, Any] = {
            "exemplars": self._exemplars(groups, chosen, first),
            "plan": plan_fusion(group_of_query, positions),
        }
        if self.label_slots is not None:
            slot_of_class = draws.permutation(self.label_slots)
            unlabelled = (draws.random(len(rows)) < self.label_dropout)[part]
            slots = np.where(unlabelled, self.label_slots, slot_of_class[labels])
            arguments["class_labels"] = torch.from_numpy(slots)
        return arguments

    def _count(self, step: int) -> tuple[int, np.random.Generator]:
        """Return the number of exemplars per class that a step draws, and what draws the rest of the step."""
        draws = numpy_generator(self.seed, "exemplars", step)
        return round(math.exp(draws.uniform(math.log(self.smallest), math.log(self.largest)))), draws

    def _exemplars(self, labels: np.ndarray, chosen: list[np.ndarray], step: int) -> Tensor:
        """Return the chosen exemplars, one class after another, each in its orientation of this step."""
        images = to_model_input(self.store.images[np.concatenate(chosen)])
        if not self.reorientation:
            return images
        orientations = Orientations(self.seed, self.reorientation)
        of_class = images.split([len(members) for members in chosen])
        return torch.cat(
            [orientations.turn(part, step, int(label)) for part, label in zip(of_class, labels, strict=True)]
        )

    def _choose(self, label: int, count: int, excluded: np.ndarray, step: int) -> np.ndarray:
        """Choose exemplars of a class whose ids are not excluded."""
        candidates = self.store.by_class(label)
        draws = numpy_generator(self.seed, "exemplars", step, label)
        asked = min(len(candidates), count + len(excluded))
        shuffled = draws.choice(candidates, asked, replace=False)
        allowed = shuffled[~np.isin(id_keys(self.store.ids[shuffled]), excluded)]
        return allowed[:count]
