"""What every training loop keeps account of: its steps, their mean loss, and its resume points.

Processes that train together each keep the account, and come to the same: losses are averaged over them, and
they stop together.
"""

from __future__ import annotations

import resource
import signal
import sys
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
        kept: further tensors that the coming steps need.
        stop: whether this process was asked to stop.
        bar: what people see.
        done: finished steps and their seconds; the loss is that of the newest resume point.
        random_state: of torch, before anything was trained.
    """

    config: CountedTraining
    accelerator: Accelerator
    checkpoints: CheckpointFolder | None
    ema: EMAModel | None
    kept: dict[str, Tensor]
    stop: StopRequest
    bar: tqdm
    done: Progress
    random_state: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        self._mean_loss = torch.tensor(self.done.loss, device=self.accelerator.device)
        self._since = time.perf_counter()
        self._logged = (self._since, self.done.step)
        self._asked = torch.zeros(())
        self._arrived: torch.cuda.Event | None = None

    @property
    def images(self) -> int:
        """Images shown so far."""
        return self.done.step * self.config.batch_size

    def agreed_progress(self) -> Progress:
        """Return how far training has come, with the mean loss of the latest steps.

        All processes ask at once: the loss is that of all of them.
        """
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
        stop = self._agreed_to_stop()
        if self.checkpoints is not None and (stop or self._resume_point_due()):
            self.done = self.agreed_progress()
            drew = not all(map(torch.equal, _random_state(self.accelerator.device), self.random_state))
            self.checkpoints.save(self.accelerator, self.done, self.ema, drew, self.kept)
        if stop:
            raise TrainingInterruptedError(self.images, self.config.steps * self.config.batch_size)

    def _agreed_to_stop(self) -> bool:
        """Whether any process was asked to stop: all of them say the same after the same step.

        They ask each other after every step, and look at the answer after the next one, so that none waits
        for a GPU; but after the last step at once.
        """
        if self.accelerator.num_processes == 1:
            return self.stop.made
        before = None if self.done.step == self.config.steps else self._answer()
        asked = torch.tensor(float(self.stop.made), device=self.accelerator.device)
        self._asked = self.accelerator.reduce(asked, "sum").to("cpu", non_blocking=True)
        if self.accelerator.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        return self._answer() if before is None else before

    def _answer(self) -> bool:
        """Whether a process was asked to stop when they asked each other last."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._asked > 0)

    def _log(self, rate: float) -> None:
        loss, (since, first) = self.agreed_progress().loss, self._logged
        self._logged = (time.perf_counter(), self.done.step)
        shown = (self.done.step - first) * self.config.batch_size
        speed = shown / (self._logged[0] - since)
        memory = _peak_memory(self.accelerator.device)
        self.bar.set_postfix(loss=f"{loss:.4f}", memory=f"{memory:.1f} GB")
        values = {"loss": loss, "lr": rate, "images_per_second": speed, "memory_gb": memory}
        self.accelerator.log(values, self.done.step)

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
    kept: dict[str, Tensor] | None = None,
) -> Iterator[TrainingSteps]:
    """Load the newest resume point, if there is one, and open the account of the steps that follow it.

    Until it is closed, the first Ctrl-C waits for the end of the step.

    Args:
        config: hyper-parameters.
        accelerator: has what was prepared, which the resume point is loaded into.
        description: shown before the progress bar.
        checkpoints: where resume points are and go; `None` for none.
        ema: the averaged weights, where there are any.
        kept: further tensors that the coming steps need; loaded in place.
    """
    kept = {} if kept is None else kept
    first = _random_state(accelerator.device)
    done = Progress() if checkpoints is None else checkpoints.resume(accelerator, ema, kept)
    bar = progress_bar(config.steps * config.batch_size, description, initial=done.step * config.batch_size)
    with interrupts_deferred() as stop, bar:
        yield TrainingSteps(config, accelerator, checkpoints, ema, kept, stop, bar, done, first)


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Return the state of the generators of torch that a network on a device may draw from."""
    if device.type == "cuda":
        return torch.get_rng_state(), torch.cuda.get_rng_state(device)
    return (torch.get_rng_state(),)


def _peak_memory(device: torch.device) -> float:
    """Return the most memory that was in use so far, in GB: of a GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def batch_loader(batches: Dataset[Batch], positions: range, workers: int) -> DataLoader[Batch]:
    """Return the batches at some positions, made by `workers` processes, or by this one if that is 0."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=positions,
        num_workers=workers,
        generator=torch.Generator(),  # Its own, so that resuming draws nothing from the global one.
        worker_init_fn=_finish_the_step,
    )


def _finish_the_step(_worker: int) -> None:
    """Let a worker ignore what stops the training, which reaches it too; the loop ends it after the step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
