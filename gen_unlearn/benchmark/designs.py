"""Our own models as rows of the benchmark: classifiers that are built so that images can be deleted.

A design is trained on all images, and its deletion is timed. Designs with a public core promise that what
they say after a deletion is what they would say without the images; the core itself is never forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator

from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.families import AdaptersConfig
from gen_unlearn.adapters.records import Records
from gen_unlearn.benchmark.networks import NetworkConfig, build_network
from gen_unlearn.benchmark.trained_designs import TrainedDesign, TrainedLegoNet, TrainedSisa, TrainedVote
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.fit_classifier import ClassifierTraining
from gen_unlearn.commands.fit_ensemble import EnsembleTraining
from gen_unlearn.core import CoreConfig, CoreMode, CoreSplit
from gen_unlearn.data import DataConfig
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.sisa import Sisa, SisaConfig
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.classifier import SemiParametricClassifier
from gen_unlearn.models.classifier_config import ClassifierConfig
from gen_unlearn.models.encoder_config import EncoderConfig
from gen_unlearn.pipelines.adapter_ensemble import AdapterEnsemblePipeline
from gen_unlearn.pipelines.classification import SemiParametricPipeline
from gen_unlearn.pipelines.prediction import PredictionConfig
from gen_unlearn.receipts import Level
from gen_unlearn.recipes import validated
from gen_unlearn.repro import derive_seed, keyed_words
from gen_unlearn.training.classification_config import ClassifierTrainingConfig

_SMALL_TRAINING = ClassifierTrainingConfig(images=20_000)


class Design(Protocol):
    """How to make such a model."""

    @property
    def level(self) -> Level:
        """What a deletion promises."""

    def core_of(self, images: IndexedImages) -> np.ndarray:
        """Return which images are public and cannot be deleted, bool ``(n,)``; it depends on ids alone."""

    def train(self, images: IndexedImages, seed: int, *, accelerator: Accelerator) -> TrainedDesign:
        """Train on images.

        Args:
            images: the training images, the core included.
            seed: of weights and orders.
            accelerator: device and precision.
        """


@dataclass(frozen=True, kw_only=True)
class SemiParametricDesign:
    """The semi-parametric classifier (SPM): a vote of exemplars, from which images are deleted.

    With a joint core the network's weights saw all images, so that the level is ``"exemplar-only"``. With a
    public one they saw the core alone, and the other images are exemplars.

    Attributes:
        vote: ``"prototypes"`` is SPM-C, ``"exemplars"`` SPM-R.
        neighbours: exemplars that vote for an image, of ``"exemplars"``.
        core: whether the weights see all images or the core.
        core_fraction: share of the images that is the core, of ``"public"``.
        encoder: the network that images pass.
        key_dim: length of keys.
        training: of the weights.
    """

    vote: Literal["prototypes", "exemplars"] = "prototypes"
    neighbours: int = 32
    core: CoreMode = "joint"
    core_fraction: float = 0.5
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    key_dim: int = 64
    training: ClassifierTrainingConfig = _SMALL_TRAINING

    @property
    def level(self) -> Level:
        """What a deletion promises."""
        return "exemplar-only" if self.core == "joint" else "bit-exact"

    def core_of(self, images: IndexedImages) -> np.ndarray:
        """Return which images are public, see `Design`: none of a joint core."""
        return public_core(images, self.core_fraction if self.core == "public" else 0.0)

    def train(self, images: IndexedImages, seed: int, *, accelerator: Accelerator) -> TrainedVote:
        """Train the network, and encode the exemplars.

        Raises:
            ValueError: the settings do not fit the images.
        """
        core, recipe = self.core_of(images), self._recipe(seed)
        parts = CoreSplit(images, images) if self.core == "joint" else _parts(images, core)
        trained, _ = ClassifierTraining.of(recipe, parts, accelerator).fit(None, "train SPM")
        assert isinstance(trained.network, SemiParametricClassifier)
        assert trained.exemplars is not None
        pipeline = SemiParametricPipeline(
            trained.network, trained.exemplars, images.class_names, self.core, recipe.prediction
        )
        return TrainedVote(pipeline, images.ids[core])

    def _recipe(self, seed: int) -> ClassifierRunConfig:
        return ClassifierRunConfig(
            data=_NO_SOURCE,
            model=ClassifierConfig("semi-parametric", self.encoder, self.key_dim),
            core=CoreConfig(self.core),
            training=self.training,
            prediction=PredictionConfig(self.vote, self.neighbours),
            seed=derive_seed(seed, "design"),
        )


@dataclass(frozen=True, kw_only=True)
class LegoNetDesign:
    """The adapter ensemble (LegoNet): an encoder and keys of the public core, and small heads on the others.

    Attributes:
        core_fraction: share of the images that is the core.
        encoder: the network that images pass.
        adapters: the heads.
        training: of the encoder.
    """

    core_fraction: float = 0.5
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    adapters: AdaptersConfig = field(default_factory=lambda: AdaptersConfig(count=100))
    training: ClassifierTrainingConfig = _SMALL_TRAINING

    @property
    def level(self) -> Level:
        """What a deletion promises."""
        return "bit-exact"

    def core_of(self, images: IndexedImages) -> np.ndarray:
        """Return which images are public, see `Design`."""
        return public_core(images, self.core_fraction)

    def train(self, images: IndexedImages, seed: int, *, accelerator: Accelerator) -> TrainedLegoNet:
        """Train the encoder on the core, and fit the heads to the other images.

        Raises:
            ValueError: the settings do not fit the images, such as more adapters than images in the core.
        """
        core = self.core_of(images)
        recipe = ClassifierRunConfig(
            data=_NO_SOURCE,
            model=ClassifierConfig("adapter-ensemble", self.encoder, adapters=self.adapters),
            core=CoreConfig("public"),
            training=self.training,
            seed=derive_seed(seed, "design"),
        )
        trained, _ = EnsembleTraining.of(recipe, _parts(images, core), accelerator).fit(None, "train LegoNet")
        records, routes = Records.of_rows(trained.exemplars, trained.recipe.shape.features)
        ensemble = AdapterEnsemble(trained.recipe, records, routes, trained.adapters)
        assert isinstance(trained.network, AdapterBackbone)
        pipeline = AdapterEnsemblePipeline(
            trained.network, trained.recipe, ensemble.states, recipe.prediction
        )
        return TrainedLegoNet(pipeline, ensemble, images.ids[core])


@dataclass(frozen=True, kw_only=True)
class SisaDesign:
    """SISA with networks of the benchmark, see `gen_unlearn.methods.sisa`.

    Attributes:
        network: of every shard.
        sisa: shards, slices and training.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    sisa: SisaConfig = field(default_factory=SisaConfig)

    @property
    def level(self) -> Level:
        """What a deletion promises."""
        return "bit-exact"

    def core_of(self, images: IndexedImages) -> np.ndarray:
        """Return which images are public, see `Design`: none."""
        return public_core(images, 0.0)

    def train(self, images: IndexedImages, seed: int, *, accelerator: Accelerator) -> TrainedSisa:
        """Train all shards."""
        height, width, channels = images.image_shape

        def make() -> torch.nn.Module:
            own = int(torch.randint(2**62, ()).item())
            return build_network(self.network, (channels, height, width), len(images.class_names), own)

        return TrainedSisa(
            Sisa(self.sisa, make, images, accelerator=accelerator, seed=derive_seed(seed, "design"))
        )


DesignKind = Literal["semi-parametric", "adapter-ensemble", "sisa"]


def build_design(kind: DesignKind, settings: Mapping[str, Any], network: NetworkConfig) -> Design:
    """Return a design from the settings of a recipe.

    Args:
        kind: of the design.
        settings: what differs from its defaults, as YAML gives it.
        network: what the benchmark trains, which SISA's shards are too.

    Raises:
        ValueError: an unknown setting, or a value that does not fit.
    """
    kinds: dict[DesignKind, type] = {
        "semi-parametric": SemiParametricDesign,
        "adapter-ensemble": LegoNetDesign,
        "sisa": SisaDesign,
    }
    design: Design = validated(kinds[kind], dict(settings), kind)
    return replace(design, network=network) if isinstance(design, SisaDesign) else design


def public_core(images: IndexedImages, fraction: float) -> np.ndarray:
    """Return which images are public, bool ``(n,)``: those whose hashed id is below a threshold.

    Whether an image is public depends on its own id alone, so that no deletion changes the core.

    Args:
        images: the images.
        fraction: share that is public on average, from 0 to below 1.

    Raises:
        ValueError: a fraction outside of that.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"expected a core_fraction from 0 to below 1, got {fraction}")
    threshold = np.uint64(int(fraction * 2**64))
    return np.asarray(keyed_words(images.ids, "public core") < threshold)


_NO_SOURCE = DataConfig("digits")
"""Recipes name where images come from; here they are given, and this is not read."""


def _parts(images: IndexedImages, core: np.ndarray) -> CoreSplit:
    return CoreSplit(images.select(core), images.select(~core))
