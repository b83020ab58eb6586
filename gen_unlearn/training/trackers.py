"""Trackers of a training: curves for TensorBoard or Weights & Biases, beside the run.

They are given numbers of the whole training alone (loss, rate, speed, memory), the recipe's digest and the
seed: nothing of single images. Only the main process writes. A deletion removes them all the same, as it does
everything that was derived.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator

TRACKERS = ("tensorboard", "wandb")
"""What ``training.log_with`` may name: each is the name of its package, too."""

FOLDER = "gen_unlearn"
"""Folder of the logs in a run, and name of the project."""


def require_tracker(name: str | None, project: Path | None) -> None:
    """Refuse a tracker that could not log; accelerate itself leaves out silently what is not installed.

    Args:
        name: the tracker; `None` is none, which needs nothing.
        project: the folder that logs go to; without one nothing is logged.

    Raises:
        ValueError: it is not known or not installed.
    """
    if name is None or project is None:
        return
    if name not in TRACKERS:
        raise ValueError(
            f"expected training.log_with to be null or one of {', '.join(TRACKERS)}, got {name!r}"
        )
    if find_spec(name) is None:
        raise ValueError(
            f"training.log_with {name} needs the package {name}, which is not installed; "
            'pip install "gen_unlearn[trackers]", or set training.log_with to null'
        )


@contextmanager
def tracked(accelerator: Accelerator, name: str | None, about: Mapping[str, str | int]) -> Iterator[None]:
    """Log a training to a tracker, if one is named, until it ends or is stopped.

    The logs are in ``gen_unlearn``, in the folder of the run, which must be there. What Weights & Biases
    would send stays in it, for ``wandb sync``, unless the environment variable WANDB_MODE says ``online``;
    neither code nor what is printed is kept.

    Args:
        accelerator: was made with the tracker's name and the folder of the run; without a folder nothing is
            logged.
        name: the tracker of this training; `None` is none.
        about: what is noted of the training.
    """
    if name is not None and accelerator.project_dir is not None:
        folder = Path(accelerator.project_dir) / FOLDER
        if accelerator.is_main_process:
            folder.mkdir(exist_ok=True)  # Where there is none, wandb writes elsewhere.
        quiet = {"console": "off", "disable_git": True, "disable_code": True}
        wandb = {"dir": str(folder), "mode": os.environ.get("WANDB_MODE", "offline"), "settings": quiet}
        accelerator.init_trackers(FOLDER, dict(about), {"wandb": wandb})
    try:
        yield
    finally:  # Not `end_training`, which would end the group of processes as well.
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers = []
