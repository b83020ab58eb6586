"""The training of an adapter ensemble: an encoder on the public core, then adapters on what is deletable."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from gen_unlearn.adapters.encoding import encode_records, ensemble_recipe, set_public_statistics
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.fit_classifier import ClassifierTraining
from gen_unlearn.commands.trained_ensemble import TrainedEnsemble
from gen_unlearn.core import CoreConfig, CoreSplit
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.encoders import encoder_architecture, load_encoder_weights
from gen_unlearn.repro import derive_seed
from gen_unlearn.training.checkpoint import CheckpointFolder, Progress


@dataclass(frozen=True)
class EnsembleTraining:
    """Everything that the training of an adapter ensemble needs.

    Attributes:
        config: the recipe.
        network: the backbone; its scale and keys are still to come.
        encoder: trains the backbone's encoder with a linear head; `None` if its weights are named.
        parts: the public core, and what the adapters are fit on.
        accelerator: device, precision and trackers.
    """

    config: ClassifierRunConfig
    network: AdapterBackbone
    encoder: ClassifierTraining | None
    parts: CoreSplit
    accelerator: Accelerator

    @classmethod
    def of(cls, config: ClassifierRunConfig, parts: CoreSplit, accelerator: Accelerator) -> EnsembleTraining:
        """Set up the training of a recipe.

        Raises:
            ValueError: core and deletable images overlap, the core has too few images for so many keys, or
                the encoder's training cannot work, see `ClassifierTraining`.
        """
        _require_public_core(config, parts)
        height, width, channels = parts.core.image_shape
        architecture = encoder_architecture(config.model.encoder, (channels, height, width))
        adapters = config.model.adapters
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            network = AdapterBackbone(architecture, adapters.count, adapters.keys)
        if config.model.encoder.weights is not None:
            load_encoder_weights(network.encoder, config.model.encoder)
            return cls(config, network, None, parts, accelerator)
        with_head = replace(config, model=replace(config.model, kind="parametric"), core=CoreConfig())
        training = ClassifierTraining.of(with_head, CoreSplit(parts.core, parts.core), accelerator)
        network.encoder = training.network.encoder
        return cls(config, network, training, parts, accelerator)

    def fit(self, checkpoints: CheckpointFolder | None, description: str) -> tuple[TrainedEnsemble, Progress]:
        """Train the encoder on the core unless its weights are named, freeze it, and fit the adapters.

        Returns:
            The ensemble, and the steps, seconds and loss that it took; without a training the loss is 0.
        """
        config, network, deletable = self.config, self.network, self.parts.deletable
        progress = Progress(loss=0.0)
        if self.encoder is None:
            self.accelerator.end_training()
        else:
            _, progress = self.encoder.fit(checkpoints, description)
        started = time.perf_counter()
        network.requires_grad_(False).to(self.accelerator.device).eval()
        set_public_statistics(network, self.parts.core, derive_seed(config.seed, "keys"))
        side, size = config.model.exemplar_size, deletable.image_shape[:2]
        rows = encode_records(
            network,
            deletable,
            config.model.adapters.neighbours,
            size if side is None else (side, side),
        )
        recipe = ensemble_recipe(config, network.public_keys(), deletable.class_names)
        trained = TrainedEnsemble(network, recipe, rows, size)
        _ = trained.adapters  # They are fit here, so that their time counts.
        return trained, replace(progress, seconds=progress.seconds + time.perf_counter() - started)


def _require_public_core(config: ClassifierRunConfig, parts: CoreSplit) -> None:
    """Check that encoder and keys can come from images that nobody will ask to delete.

    Raises:
        ValueError: they cannot.
    """
    shared = int(parts.core.holds(parts.deletable.ids).sum())
    if shared:
        raise ValueError(
            f"expected a public core apart from the deletable images, got {shared} images in both; encoder "
            "and keys would have seen them"
        )
    adapters, distinct = config.model.adapters, len(unique_ids(parts.core.ids))
    if adapters.keys != "public-gaussian" and distinct < adapters.count:
        raise ValueError(
            f"expected at least as many distinct images in the core as model.adapters.count "
            f"({adapters.count}), got {distinct}; lower the count, raise core.fraction, or set "
            f"model.adapters.keys=public-gaussian"
        )
