"""The training of an adapter ensemble: an encoder on the public core, then adapters on what is deletable."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from accelerate import Accelerator
from torch import nn

from gen_unlearn.adapters.encoding import encode_records
from gen_unlearn.adapters.recipe import ensemble_recipe
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.fit_router import RouterTraining, require_public_core
from gen_unlearn.commands.trained_ensemble import TrainedEnsemble
from gen_unlearn.core import CoreSplit
from gen_unlearn.data import IndexedImages
from gen_unlearn.training.checkpoint import CheckpointFolder, Progress


@dataclass(frozen=True)
class EnsembleTraining:
    """Everything that the training of an adapter ensemble needs.

    Attributes:
        config: the recipe.
        router: trains the encoder, and chooses the keys.
        deletable: what the adapters are fit on.
    """

    config: ClassifierRunConfig
    router: RouterTraining
    deletable: IndexedImages

    @classmethod
    def of(cls, config: ClassifierRunConfig, parts: CoreSplit, accelerator: Accelerator) -> EnsembleTraining:
        """Set up the training of a recipe.

        Raises:
            ValueError: core and deletable images overlap, the core has too few images for so many keys, or
                the encoder's training cannot work, see `ClassifierTraining`.
        """
        adapters = config.model.adapters
        require_public_core(parts, adapters.count, adapters.keys)
        router = RouterTraining.of(config, adapters.count, adapters.keys, parts.core, accelerator)
        return cls(config, router, parts.deletable)

    @property
    def network(self) -> nn.Module:
        """The encoder with what turns its features into codes and routes."""
        return self.router.network

    def fit(self, checkpoints: CheckpointFolder | None, description: str) -> tuple[TrainedEnsemble, Progress]:
        """Train the encoder on the core unless its weights are named, freeze it, and fit the adapters.

        Returns:
            The ensemble, and the steps, seconds and loss that it took; without a training the loss is 0.
        """
        config, network, deletable = self.config, self.router.network, self.deletable
        progress = self.router.fit(checkpoints, description)
        started = time.perf_counter()
        side, size = config.model.exemplar_size, deletable.image_shape[:2]
        neighbours, pictures = config.model.adapters.neighbours, size if side is None else (side, side)
        rows = encode_records(network, deletable, neighbours, pictures)
        recipe = ensemble_recipe(config, network.public_keys(), deletable.class_names)
        trained = TrainedEnsemble(network, recipe, rows, size)
        _ = trained.adapters  # They are fit here, so that their time counts.
        return trained, replace(progress, seconds=progress.seconds + time.perf_counter() - started)
