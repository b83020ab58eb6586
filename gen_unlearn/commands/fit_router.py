"""The training of a router: an encoder on the public core, then its scale and the keys of the adapters."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from gen_unlearn.adapters.encoding import set_public_statistics
from gen_unlearn.adapters.families import PublicKeySource
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.fit_classifier import ClassifierTraining
from gen_unlearn.core import CoreConfig, CoreSplit
from gen_unlearn.data import IndexedImages
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.encoders import encoder_architecture, load_encoder_weights
from gen_unlearn.repro import derive_seed
from gen_unlearn.training.checkpoint import CheckpointFolder, Progress


@dataclass(frozen=True)
class RouterTraining:
    """Everything that the training of a router needs.

    Attributes:
        network: the router; its scale and keys are still to come.
        encoder: trains the router's encoder with a linear head; `None` if its weights are named.
        core: the public images.
        seed: of the choice of keys.
        accelerator: device and precision.
    """

    network: AdapterBackbone
    encoder: ClassifierTraining | None
    core: IndexedImages
    seed: int
    accelerator: Accelerator

    @classmethod
    def of(
        cls,
        config: ClassifierRunConfig,
        count: int,
        keys: PublicKeySource,
        core: IndexedImages,
        accelerator: Accelerator,
    ) -> RouterTraining:
        """Set up the training.

        Args:
            config: names the encoder and how it is trained.
            count: number of adapters.
            keys: what their keys are made from.
            core: the public images.
            accelerator: device and precision.

        Raises:
            ValueError: the encoder's training cannot work, see `ClassifierTraining`.
        """
        height, width, channels = core.image_shape
        architecture = encoder_architecture(config.model.encoder, (channels, height, width))
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            network = AdapterBackbone(architecture, count, keys)
        seed = derive_seed(config.seed, "keys")
        if config.model.encoder.weights is not None:
            load_encoder_weights(network.encoder, config.model.encoder)
            return cls(network, None, core, seed, accelerator)
        with_head = replace(config, model=replace(config.model, kind="parametric"), core=CoreConfig())
        training = ClassifierTraining.of(with_head, CoreSplit(core, core), accelerator)
        network.encoder = training.network.encoder
        return cls(network, training, core, seed, accelerator)

    def fit(self, checkpoints: CheckpointFolder | None, description: str) -> Progress:
        """Train the encoder on the core unless its weights are named, freeze it, and choose the keys.

        Returns:
            The steps, seconds and loss that it took; without a training the loss is 0.
        """
        progress = Progress(loss=0.0)
        if self.encoder is not None:
            _, progress = self.encoder.fit(checkpoints, description)
        started = time.perf_counter()
        self.network.requires_grad_(False).to(self.accelerator.device).eval()
        set_public_statistics(self.network, self.core, self.seed)
        return replace(progress, seconds=progress.seconds + time.perf_counter() - started)


def require_public_core(parts: CoreSplit, count: int, keys: PublicKeySource) -> None:
    """Check that frozen networks and keys can come from images that nobody will ask to delete.

    Args:
        parts: the public core and the deletable images.
        count: number of adapters.
        keys: what their keys are made from.

    Raises:
        ValueError: core and deletable images overlap, or the core has too few images for so many keys.
    """
    shared = int(parts.core.holds(parts.deletable.ids).sum())
    if shared:
        raise ValueError(
            f"expected a public core apart from the deletable images, got {shared} images in both; encoder "
            "and keys would have seen them"
        )
    distinct = len(unique_ids(parts.core.ids))
    if keys != "public-gaussian" and distinct < count:
        raise ValueError(
            f"expected at least as many distinct images in the core as model.adapters.count ({count}), got "
            f"{distinct}; lower the count, raise core.fraction, or set model.adapters.keys=public-gaussian"
        )
