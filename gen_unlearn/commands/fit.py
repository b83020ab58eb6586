"""Fit models to images in memory: what a training needs, whatever becomes of the result."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, overload

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.fit_classifier import ClassifierTraining
from gen_unlearn.commands.fit_ensemble import EnsembleTraining
from gen_unlearn.commands.fit_generator import GeneratorTraining
from gen_unlearn.commands.fit_lora_ensemble import LoraEnsembleTraining
from gen_unlearn.commands.trained_classifier import TrainedClassifier
from gen_unlearn.commands.trained_ensemble import TrainedEnsemble
from gen_unlearn.config import Recipe, RunConfig
from gen_unlearn.core import CoreSplit
from gen_unlearn.data import IndexedImages
from gen_unlearn.pipelines.sampling import GeneratorPipeline
from gen_unlearn.processes import process_state
from gen_unlearn.runs import SavedModel
from gen_unlearn.training.checkpoint import CheckpointFolder, Progress
from gen_unlearn.training.compilation import require_compiler
from gen_unlearn.training.support import require_supported
from gen_unlearn.training.trackers import require_tracker


class Training(Protocol):
    """A model with fresh weights, and everything that its training needs."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""

    def fit(self, checkpoints: CheckpointFolder | None, description: str) -> tuple[SavedModel, Progress]:
        """Train; return the model, and the steps, seconds and loss it took.

        The caller's random state is left alone. Raises `TrainingInterruptedError` on Ctrl-C.
        """


@overload
def fresh_training(
    config: RunConfig, parts: CoreSplit, project: Path | None
) -> GeneratorTraining | LoraEnsembleTraining: ...


@overload
def fresh_training(
    config: ClassifierRunConfig, parts: CoreSplit, project: Path | None
) -> ClassifierTraining | EnsembleTraining: ...


def fresh_training(config: Recipe, parts: CoreSplit, project: Path | None) -> Training:
    """Set up the training of a recipe. Nothing is written if it cannot work.

    Args:
        config: the recipe.
        parts: what weights are fit on, and what can be deleted.
        project: folder of trackers' logs.

    Raises:
        ValueError: the recipe does not fit the images, the number of processes, or the machine.
    """
    accelerator = _accelerator(config, project)
    fresh: Training
    if isinstance(config, RunConfig):
        kind = LoraEnsembleTraining if config.model.kind == "adapter-ensemble" else GeneratorTraining
        fresh = kind.of(config, parts, accelerator)
    elif config.model.kind == "adapter-ensemble":
        fresh = EnsembleTraining.of(config, parts, accelerator)
    else:
        fresh = ClassifierTraining.of(config, parts, accelerator)
    return fresh


def fit(
    config: RunConfig,
    data: IndexedImages,
    exemplars: IndexedImages | None = None,
    checkpoints: CheckpointFolder | None = None,
    description: str = "train",
) -> tuple[GeneratorPipeline | TrainedEnsemble, Progress]:
    """Fit a generator to `data`; return it, and the steps, seconds and loss it took.

    The adapters of an adapter ensemble are fit to `exemplars`; every other generator is a pipeline. The
    result is a function of the recipe and of the images. Raises `TrainingInterruptedError` on Ctrl-C.

    Args:
        config: the recipe; its `core` section does not matter here.
        data: what the weights are fit on.
        exemplars: what the pipeline looks at afterwards, if that is something else.
        checkpoints: where resume points go; `None` for none.
        description: shown before the progress bar.
    """
    training = fresh_training(config, _parts(data, exemplars), _project(checkpoints))
    return training.fit(checkpoints, description)


def fit_classifier(
    config: ClassifierRunConfig,
    data: IndexedImages,
    exemplars: IndexedImages | None = None,
    checkpoints: CheckpointFolder | None = None,
    description: str = "train",
) -> tuple[TrainedClassifier | TrainedEnsemble, Progress]:
    """Fit a classifier to `data`, as `fit` does a generator.

    The adapters of an adapter ensemble are fit to `exemplars`.
    """
    training = fresh_training(config, _parts(data, exemplars), _project(checkpoints))
    return training.fit(checkpoints, description)


def _parts(data: IndexedImages, exemplars: IndexedImages | None) -> CoreSplit:
    return CoreSplit(data, data if exemplars is None else exemplars)


def _project(checkpoints: CheckpointFolder | None) -> Path | None:
    return None if checkpoints is None else checkpoints.path.parent


def _accelerator(config: Recipe, project: Path | None) -> Accelerator:
    """Return devices, precision and trackers of a training."""
    require_tracker(config.training.log_with, project)
    cpu = process_state().device.type == "cpu"
    AcceleratorState._reset_state()  # Each run has its own precision.
    accumulation = config.training.gradient_accumulation_steps if isinstance(config, RunConfig) else 1
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=config.training.mixed_precision,
        gradient_accumulation_steps=accumulation,
        log_with=None if project is None else config.training.log_with,
        project_dir=project,
    )
    require_supported(accelerator)
    if isinstance(config, RunConfig) and config.training.compile:
        require_compiler(accelerator.device)
    return accelerator
