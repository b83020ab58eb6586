"""Resume points: written whole or not at all, and found by themselves."""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gen_unlearn.processes import from_main

_PROGRESS = "progress.json"
_KEPT = "kept.safetensors"


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

    A resume point appears under its name by one rename, after all of it was written, and lists the sizes of
    its files: a torn one is never loaded, and the one before it is. It holds Accelerate's state, the averaged
    weights and a small JSON file. What a step sees is derived from the step and needs no state, so that
    another number of processes can continue. What the network draws by itself, as dropout does, continues
    with torch's generators, of which each process has its own: then as many processes as before must.

    Several processes share one folder, on all of their hosts.

    Attributes:
        path: the folder.
        recipe_digest: what the resume points belong to; another recipe's are refused.
        keep: how many to keep.
    """

    path: Path
    recipe_digest: str
    keep: int = 1

    def save(
        self,
        accelerator: Accelerator,
        progress: Progress,
        ema: EMAModel | None = None,
        drew: bool = False,
        kept: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the resume point of a finished step, and drop those that are too many.

        Args:
            accelerator: has the state of what was prepared.
            progress: how far training has come.
            ema: the averaged weights, where there are any.
            drew: whether the network drew random numbers by itself.
            kept: further tensors that the coming steps need, the same in all processes.

        Raises:
            ValueError: the hosts of several processes do not share the folder.
        """
        # A new name each time: a network disk may still know what was under an old one.
        unfinished = self.path / f"unfinished-{progress.step:08d}"
        if accelerator.is_main_process:
            for left in self.path.glob("unfinished*"):
                shutil.rmtree(left)
            unfinished.mkdir(parents=True)
        accelerator.wait_for_everyone()
        if not unfinished.is_dir():
            raise ValueError(
                f"expected {self.path} on a disk that all hosts share, got none on the host of process "
                f"{accelerator.process_index}; choose an output folder that they share"
            )
        _save_state(accelerator, unfinished)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            state: dict[str, Any] = {"recipe_digest": self.recipe_digest, "drew": drew}
            state["processes"] = accelerator.num_processes
            if ema is not None:
                averaged = {str(index): weights for index, weights in enumerate(ema.shadow_params)}
                save_file(averaged, unfinished / "ema.safetensors")
                state["ema_step"] = ema.optimization_step
            if kept:
                save_file(dict(kept), unfinished / _KEPT)
            files = [file for file in unfinished.rglob("*") if file.is_file()]
            state["sizes"] = {str(file.relative_to(unfinished)): file.stat().st_size for file in files}
            (unfinished / _PROGRESS).write_text(json.dumps(asdict(progress) | state), encoding="utf-8")
            target = self.path / f"step-{progress.step:08d}"
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
            for outdated in set(self._all()) - set(self._complete()[-self.keep :]):
                shutil.rmtree(outdated)
        accelerator.wait_for_everyone()

    def resume(
        self,
        accelerator: Accelerator,
        ema: EMAModel | None = None,
        kept: dict[str, Tensor] | None = None,
    ) -> Progress:
        """Load the newest complete resume point into what was prepared; return how far it got.

        Args:
            accelerator: has what was prepared.
            ema: the averaged weights, where there are any.
            kept: is given the further tensors that were kept.

        Raises:
            ValueError: the resume point was written under another recipe, or by another number of processes
                of a network that draws by itself.
        """
        name = from_main(next((path.name for path in reversed(self._complete())), None))
        if name is None:
            return Progress()
        newest = self.path / name
        state = json.loads((newest / _PROGRESS).read_text(encoding="utf-8"))
        if state["recipe_digest"] != self.recipe_digest:
            raise ValueError(f"{newest} belongs to another recipe; use another output folder, or delete it")
        wrote = state.get("processes", 1)  # Before there could be several, none was noted.
        if state.get("drew", True) and wrote != accelerator.num_processes:
            raise ValueError(
                f"expected as many processes as wrote {newest}, {wrote}, got "
                f"{accelerator.num_processes}: the network draws random numbers by itself, as dropout does, "
                f"so that others could not continue exactly; start as many, or delete {self.path}"
            )
        _load_state(accelerator, newest)
        if ema is not None:
            averaged = load_file(newest / "ema.safetensors")
            for index, weights in enumerate(ema.shadow_params):
                weights.copy_(averaged[str(index)])
            ema.optimization_step = state["ema_step"]
        if kept is not None and (newest / _KEPT).exists():
            kept |= load_file(newest / _KEPT, device=str(accelerator.device))
        return Progress(state["step"], state["seconds"], state["loss"])

    def remove(self) -> None:
        """Delete all resume points, as is done once training is complete."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(self.path.glob("step-*"))

    def _complete(self) -> list[Path]:
        return [path for path in self._all() if _is_complete(path)]


def _is_complete(path: Path) -> bool:
    """Whether all files of a resume point are there and as long as they were written, where that is noted."""
    try:
        sizes = json.loads((path / _PROGRESS).read_text(encoding="utf-8")).get("sizes", {})
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _save_state(accelerator: Accelerator, folder: Path) -> None:
    """Save Accelerate's state, with weights named as in the network itself, whatever it is wrapped in."""

    def unwrapped(models: list[nn.Module], weights: list[dict[str, Tensor]], _folder: str) -> None:
        weights[:] = [accelerator.unwrap_model(model).state_dict() for model in models]

    hook = accelerator.register_save_state_pre_hook(unwrapped)
    accelerator.save_state(str(folder))
    hook.remove()


def _load_state(accelerator: Accelerator, folder: Path) -> None:
    """Load Accelerate's state into what was prepared, whatever it is wrapped in."""

    def unwrapped(models: list[nn.Module], _folder: str) -> None:
        models[:] = [accelerator.unwrap_model(model) for model in models]

    hook = accelerator.register_load_state_pre_hook(unwrapped)
    accelerator.load_state(str(folder))
    hook.remove()


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
