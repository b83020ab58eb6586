"""The account of a training: what it counts, averages, logs and writes."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker, on_main_process

from gen_unlearn.training.checkpoint import CheckpointFolder, TrainingInterruptedError
from gen_unlearn.training.classification_config import ClassifierTrainingConfig
from gen_unlearn.training.steps import TrainingSteps, counted_steps

CONFIG = ClassifierTrainingConfig(images=1000, batch_size=10, checkpoint_images=25)


class Notebook(GeneralTracker):
    """A tracker that remembers what it is told."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, float]]] = []

    @property
    def tracker(self) -> None:
        return None

    @on_main_process
    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.lines.append((step, values))


@pytest.fixture
def notebook() -> Notebook:
    AcceleratorState._reset_state()
    return Notebook()


@pytest.fixture
def accelerator(notebook: Notebook) -> Accelerator:
    built = Accelerator(cpu=True, log_with=notebook)
    built.init_trackers("account")
    return built


def finish(steps: TrainingSteps, losses: list[float]) -> None:
    for loss in losses:
        steps.finish(torch.tensor(loss), rate=steps.images / 1000)


def test_the_mean_starts_at_the_first_loss_and_follows_by_a_fiftieth(accelerator: Accelerator) -> None:
    with counted_steps(CONFIG, accelerator, "train", checkpoints=None) as steps:
        assert math.isnan(steps.agreed_progress().loss)
        finish(steps, [2.0])
        assert (steps.images, steps.agreed_progress().loss) == (10, 2.0)
        finish(steps, [3.0, 2.02])
    assert steps.agreed_progress().step == 3
    assert steps.agreed_progress().loss == pytest.approx(2.02)


def test_every_fiftieth_step_is_logged_and_no_second_counts_twice(
    accelerator: Accelerator, notebook: Notebook
) -> None:
    started = time.perf_counter()
    with counted_steps(CONFIG, accelerator, "train", checkpoints=None) as steps:
        finish(steps, [0.5] * 100)
    assert [(step, line["loss"], line["lr"]) for step, line in notebook.lines] == [
        (50, 0.5, 0.49),
        (100, 0.5, 0.99),
    ]
    assert all(
        line["images_per_second"] > 500 / (time.perf_counter() - started) for _, line in notebook.lines
    )
    assert all(0.05 < line["memory_gb"] < 50 for _, line in notebook.lines)
    assert 0 < steps.agreed_progress().seconds <= time.perf_counter() - started


def test_a_resume_point_goes_with_each_multiple_of_the_images_between_two(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    folder = CheckpointFolder(tmp_path, "digest", keep=9)
    with counted_steps(CONFIG, accelerator, "train", folder) as steps:
        finish(steps, [1.0] * 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step-{step:08d}"
        for step in (3, 5, 8)  # at 30, 50 and 80 images: past 25, at 50, past 75
    ]
    with counted_steps(CONFIG, accelerator, "train", folder) as later:
        assert later.images == 80
        assert later.agreed_progress() == steps.agreed_progress()
        finish(later, [2.0])
    assert later.agreed_progress().loss == pytest.approx(1.02)
    assert later.agreed_progress().seconds > steps.agreed_progress().seconds


def interrupted_in_the_second_step(accelerator: Accelerator, folder: CheckpointFolder) -> None:
    with counted_steps(CONFIG, accelerator, "train", folder) as steps:
        finish(steps, [1.0])
        signal.raise_signal(signal.SIGINT)
        finish(steps, [1.0, 1.0])


def test_ctrl_c_waits_for_the_end_of_the_step(accelerator: Accelerator, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterruptedError, match="stopped at 20 of 1,000 images"):
        interrupted_in_the_second_step(accelerator, CheckpointFolder(tmp_path, "digest"))
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
