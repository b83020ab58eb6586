"""What every training loop keeps account of: its steps, their mean loss, and its resume points."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from gen_unlearn.progress import progress_bar
from gen_unlearn.training.checkpoint import (
    CheckpointFolder,
    Progress,
    StopRequest,
    TrainingInterruptedError,
    interrupts_deferred,
)
from gen_unlearn.training.schedule import ScheduledTraining

_LOG_STEPS = 50
_LOSS_SHARE = 0.02

Batch = TypeVar("Batch", covariant=True)


class CountedTraining(ScheduledTraining, Protocol):
    """What the account depends on; see the training configurations."""

    @property
    def checkpoint_images(self) -> int:
        """Images between two resume points."""


@dataclass
class TrainingSteps:
    """The account of a training; `counted_steps` opens it, and the loop reports each step that it finished.

    Attributes:
        config: how many images make a step, a training, and the way to the next resume point.
        accelerator: has the state of what was prepared, and the trackers.
        checkpoints: where resume points go; `None` for none.
        ema: the averaged weights, where there are any.
        stop: whether the user asked to stop.
        bar: what people see.
        done: finished steps and their seconds; the loss is that of the newest resume point.
    """

    config: CountedTraining
    accelerator: Accelerator
    checkpoints: CheckpointFolder | None
    ema: EMAModel | None
    stop: StopRequest
    bar: tqdm
    done: Progress

    def __post_init__(self) -> None:
        self._mean_loss = torch.tensor(self.done.loss, device=self.accelerator.device)
        self._since = time.perf_counter()

    @property
    def images(self) -> int:
        """Images shown so far."""
        return self.done.step * self.config.batch_size

    @property
    def progress(self) -> Progress:
        """How far training has come, with the mean loss of the latest steps."""
        return replace(self.done, loss=self.accelerator.reduce(self._mean_loss, "mean").item())

    def finish(self, loss: Tensor, rate: float) -> None:
        """Count a step; every so often log, or write a resume point.

        Args:
            loss: float32 scalar, the loss of the step.
            rate: learning rate to log.

        Raises:
            TrainingInterruptedError: Ctrl-C; a resume point was written if there is a place for it.
        """
        mean = self._mean_loss
        self._mean_loss = torch.where(mean.isnan(), loss, mean.lerp(loss, _LOSS_SHARE))
        self.done = replace(self.done, step=self.done.step + 1)
        self.bar.update(self.config.batch_size)
        if self.done.step % _LOG_STEPS == 0:
            self._log(rate)
        now = time.perf_counter()
        self.done = replace(self.done, seconds=self.done.seconds + now - self._since)
        self._since = now
        if self.checkpoints is not None and (self.stop.made or self._resume_point_due()):
            self.done = self.progress
            self.checkpoints.save(self.accelerator, self.done, self.ema)
        if self.stop.made:
            raise TrainingInterruptedError(self.images, self.config.steps * self.config.batch_size)

    def _log(self, rate: float) -> None:
        loss = self.progress.loss
        self.bar.set_postfix(loss=f"{loss:.4f}")
        self.accelerator.log({"loss": loss, "lr": rate}, self.done.step)

    def _resume_point_due(self) -> bool:
        """Whether the latest step went past a multiple of `checkpoint_images`."""
        every = self.config.checkpoint_images
        return self.images // every > (self.images - self.config.batch_size) // every


@contextmanager
def counted_steps(
    config: CountedTraining,
    accelerator: Accelerator,
    description: str,
    checkpoints: CheckpointFolder | None,
    ema: EMAModel | None = None,
) -> Iterator[TrainingSteps]:
    """Load the newest resume point, if there is one, and open the account of the steps that follow it.

    Until it is closed, the first Ctrl-C waits for the end of the step.

    Args:
        config: hyper-parameters.
        accelerator: has what was prepared, which the resume point is loaded into.
        description: shown before the progress bar.
        checkpoints: where resume points are and go; `None` for none.
        ema: the averaged weights, where there are any.
    """
    done = Progress() if checkpoints is None else checkpoints.resume(accelerator, ema)
    bar = progress_bar(config.steps * config.batch_size, description, initial=done.step * config.batch_size)
    with interrupts_deferred() as stop, bar:
        yield TrainingSteps(config, accelerator, checkpoints, ema, stop, bar, done)


def batch_loader(batches: Dataset[Batch], positions: range, workers: int) -> DataLoader[Batch]:
    """Return the batches at some positions, made by `workers` processes, or by this one if that is 0."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=positions,
        num_workers=workers,
        generator=torch.Generator(),  # Its own, so that resuming draws nothing from the global one.
    )
