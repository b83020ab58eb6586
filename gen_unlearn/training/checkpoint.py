"""Resume points: written whole or not at all, and found by themselves."""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file


class TrainingInterruptedError(Exception):
    """Training stopped on request; the newest resume point holds everything done so far."""

    def __init__(self, done: int, total: int, unit: str = "images") -> None:
        super().__init__(f"stopped at {done:,} of {total:,} {unit}")
        self.done = done
        self.total = total


@dataclass(frozen=True)
class Progress:
    """How far training has come.

    Attributes:
        step: finished steps.
        seconds: wall-clock time they took, without pauses.
        loss: mean loss of the latest steps.
    """

    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder of resume points ``step-00001000``, of which the newest `keep` are kept.

    A resume point appears under its name by one rename, after all of it was written, so a torn
    one is never loaded. It holds Accelerate's state, the averaged weights and a small JSON file. What a step
    sees is derived from the step and needs no state; what the network draws by itself, as the dropout of some
    encoders of torchvision does, continues with torch's generators, whose state is part of Accelerate's.

    Attributes:
        path: the folder.
        recipe_digest: what the resume points belong to; another recipe's are refused.
        keep: how many to keep.
    """

    path: Path
    recipe_digest: str
    keep: int = 1

    def save(self, accelerator: Accelerator, progress: Progress, ema: EMAModel | None = None) -> None:
        """Write the resume point of a finished step, and drop those that are too many.

        Args:
            accelerator: has the state of what was prepared.
            progress: how far training has come.
            ema: the averaged weights, where there are any.
        """
        unfinished = self.path / "unfinished"
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(unfinished))
        if accelerator.is_main_process:
            state: dict[str, str | int] = {"recipe_digest": self.recipe_digest}
            if ema is not None:
                averaged = {str(index): weights for index, weights in enumerate(ema.shadow_params)}
                save_file(averaged, unfinished / "ema.safetensors")
                state["ema_step"] = ema.optimization_step
            (unfinished / "progress.json").write_text(json.dumps(asdict(progress) | state))
            target = self.path / f"step-{progress.step:08d}"
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
            for outdated in self._all()[: -self.keep]:
                shutil.rmtree(outdated)
        accelerator.wait_for_everyone()

    def resume(self, accelerator: Accelerator, ema: EMAModel | None = None) -> Progress:
        """Load the newest resume point into what was prepared, if there is one; return how far it got.

        Raises:
            ValueError: the resume point was written under another recipe.
        """
        found = self._all()
        if not found:
            return Progress()
        state = json.loads((found[-1] / "progress.json").read_text())
        if state["recipe_digest"] != self.recipe_digest:
            raise ValueError(
                f"{found[-1]} belongs to another recipe; use another output folder, or delete it"
            )
        accelerator.load_state(str(found[-1]))
        if ema is not None:
            averaged = load_file(found[-1] / "ema.safetensors")
            for index, weights in enumerate(ema.shadow_params):
                weights.copy_(averaged[str(index)])
            ema.optimization_step = state["ema_step"]
        return Progress(state["step"], state["seconds"], state["loss"])

    def remove(self) -> None:
        """Delete all resume points, as is done once training is complete."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(self.path.glob("step-*"))


class StopRequest:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self.made = False


@contextmanager
def interrupts_deferred() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C, or a polite kill, into a request that the loop honours between two steps.

    A second one interrupts at once. Outside of the main thread, which alone may handle signals, nothing is
    deferred.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def remember(_number: int, _frame: FrameType | None) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.made = True

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
