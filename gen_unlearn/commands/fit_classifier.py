"""The training of a classifier, from fresh weights to its exemplars."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.trained_classifier import TrainedClassifier
from gen_unlearn.core import CoreSplit
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplar_keys import encode_exemplars
from gen_unlearn.models.classifier import (
    ClassifierNetwork,
    ParametricClassifier,
    SemiParametricClassifier,
    build_classifier,
)
from gen_unlearn.repro import derive_seed, digest_state
from gen_unlearn.runs import RunFolder
from gen_unlearn.training.checkpoint import CheckpointFolder, Progress
from gen_unlearn.training.classification import train_classifier
from gen_unlearn.training.classification_batches import (
    Augmentation,
    BatchMates,
    ClassificationBatches,
    SupportSampling,
)
from gen_unlearn.training.classification_config import ClassifierTrainingConfig
from gen_unlearn.training.gathering import normalised_together
from gen_unlearn.training.trackers import tracked


@dataclass(frozen=True)
class ClassifierTraining:
    """Everything that the training of a classifier needs, with fresh weights."""

    config: ClassifierRunConfig
    network: ClassifierNetwork
    batches: ClassificationBatches
    deletable: IndexedImages
    accelerator: Accelerator

    @classmethod
    def of(
        cls, config: ClassifierRunConfig, parts: CoreSplit, accelerator: Accelerator
    ) -> ClassifierTraining:
        """Set up the training of a recipe.

        Raises:
            ValueError: the batches are too large for the images or too small for the model, or the encoder is
                not where the recipe says.
        """
        training, data = config.training, parts.core
        voting = config.model.kind == "semi-parametric"
        if voting and training.exemplars == "sampled" and 2 * training.batch_size > len(data):
            raise ValueError(
                f"batch_size ({training.batch_size}) must be at most half of the {len(data)} images that "
                f"the weights are fit on: no image of a step serves as an exemplar in it"
            )
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(derive_seed(config.seed, "weights"))
            network = build_classifier(config.model, data.image_shape, len(data.class_names))
        if training.batch_size < 2:
            _require_single_images_to_teach(network)
        if training.encoder_run is not None:
            _take_over_encoder(network, Path(training.encoder_run).expanduser())
        batches = ClassificationBatches(
            data=data,
            batch_size=training.batch_size,
            steps=training.steps,
            seed=config.seed,
            augmentation=Augmentation(training.shift, training.horizontal_flip),
            exemplars=_exemplars_of_steps(training) if voting else None,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        return cls(config, network, batches, parts.deletable, accelerator)

    def fit(
        self, checkpoints: CheckpointFolder | None, description: str
    ) -> tuple[TrainedClassifier, Progress]:
        """Train, then encode the exemplars; return both, and the steps, seconds and loss it took."""
        config, data, network = self.config, self.deletable, self.network
        about: dict[str, str | int] = {"recipe": config.digest, "seed": config.seed}
        logged = tracked(self.accelerator, config.training.log_with, about)
        with logged, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(derive_seed(config.seed, "dropout", self.accelerator.process_index))
            with normalised_together(network, self.accelerator.num_processes):
                progress = train_classifier(
                    network, self.batches, config.training, self.accelerator, checkpoints, description
                )
        network.eval()
        size, exemplars = data.image_shape[:2], None
        if isinstance(network, SemiParametricClassifier):
            side = config.model.exemplar_size
            exemplars = encode_exemplars(network, data, size if side is None else (side, side))
        return TrainedClassifier(network, exemplars, data.class_names, size), progress


def _require_single_images_to_teach(network: ClassifierNetwork) -> None:
    """Check that steps of one image can train a network.

    Raises:
        ValueError: they cannot.
    """
    if isinstance(network, SemiParametricClassifier):
        need = "a semi-parametric model: alone, an image has no other to be its exemplar"
    elif any(isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)) for part in network.modules()):
        need = "an encoder with batch normalisation: alone, an image has no others to be normalised with"
    else:
        return
    raise ValueError(f"expected training.batch_size of at least 2, got 1, for {need}; set it to 2 or more")


def _exemplars_of_steps(training: ClassifierTrainingConfig) -> SupportSampling | BatchMates:
    if training.exemplars == "batch":
        return BatchMates()
    return SupportSampling(*training.support_per_class)


def _take_over_encoder(network: ClassifierNetwork, path: Path) -> None:
    """Load the encoder of a trained parametric run and freeze it.

    Raises:
        ValueError: the run is no parametric classifier, its weights are not those that its training ended
            with, or its encoder is another one.
    """
    run = RunFolder.open(path)
    if run.classifier_config.model.kind != "parametric":
        raise ValueError(f"expected a parametric run as training.encoder_run, got {path}")
    trained = ParametricClassifier.from_pretrained(run.classifier_path, local_files_only=True)
    record, found = run.manifest.training, digest_state(trained.state_dict())
    assert record is not None, "an opened run is trained"
    if found != record.weights_digest:
        raise ValueError(
            f"expected the weights that {path} was trained to (SHA-256 {record.weights_digest}), got others "
            f"({found}): {run.classifier_path} was changed since; put it back, or train the encoder again"
        )
    if trained.config.architecture != network.config.architecture:
        raise ValueError(
            f"expected an encoder {network.config.architecture}, got {trained.config.architecture} in "
            f"{path}; use the same model.encoder"
        )
    network.encoder.load_state_dict(trained.encoder.state_dict())
    network.encoder.requires_grad_(False)
