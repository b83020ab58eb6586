"""What generators of deletable images are compared on: images, a backbone, a router and a judge.

The training images of the digits are divided into a public core and deletable ones, in one of two ways: half
of each class, or by classes, five of which the core never saw. A plain class-conditional denoiser is trained
on the core, and so is the encoder that routes. The judge is trained on all training images.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from torch import nn

from gen_unlearn.adapters.encoding import encode_records, set_public_statistics
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.routing import KeySource
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.fit import fit, fit_classifier
from gen_unlearn.commands.trained_ensemble import TrainedEnsemble
from gen_unlearn.config import RunConfig, load_config, load_recipe
from gen_unlearn.core import CoreConfig, CoreSplit, split_core
from gen_unlearn.data import IndexedImages, load_split, stratified_split
from gen_unlearn.judging.evidence import Measurer, Recogniser, of_classes
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.frozen_denoiser import FrozenDenoiser
from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.loading import load_generator, weights_digest
from gen_unlearn.repro import digest_json
from gen_unlearn.training.classifier import JudgeFeatures, train_judge

ROOT = Path(__file__).parents[1]
DivisionName = Literal["images", "classes"]
UNSEEN = ("1", "3", "5", "7", "9")
DIVISIONS: dict[DivisionName, CoreConfig] = {
    "images": CoreConfig("public", 0.5),
    "classes": CoreConfig("public", 0.8, unseen_classes=UNSEEN),
}
"""How the training images are divided into public and deletable ones."""

_FOR_TUNING = 0.125
_ROUTER_IMAGES = 15_000


class Routed(NamedTuple):
    """A router with its keys, and encoded images."""

    router: AdapterBackbone
    deletable: Records
    held_out: Records


@dataclass(frozen=True)
class World:
    """What all generators share.

    Attributes:
        config: the recipe of the backbone: a plain class-conditional denoiser.
        train: all training images.
        parts: the public core, and what can be deleted.
        held_out: images of the measured classes that no generator saw.
        classes: those that are measured: all, or those that the core never saw.
        judge: says what images show.
        measurer: gives the features that distances are taken in.
        backbone: trained on the core.
        backbone_seconds: of its training; 0 if it was found on disk.
        router: the encoder trained on the core, and its description.
    """

    config: RunConfig
    train: IndexedImages
    parts: CoreSplit
    held_out: IndexedImages
    classes: tuple[int, ...]
    judge: Recogniser
    measurer: Measurer
    backbone: ClassConditionalDDPMPipeline
    backbone_seconds: float
    router: AdapterBackbone

    @cached_property
    def denoiser(self) -> FrozenDenoiser:
        """The frozen backbone, to be adapted."""
        return FrozenDenoiser(self.backbone.unet, self.config.noise.build(), len(self.class_names))

    @cached_property
    def backbone_digest(self) -> str:
        """SHA-256 of the backbone's weights."""
        return weights_digest(self.backbone)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes."""
        return self.parts.core.class_names

    @cached_property
    def measured(self) -> IndexedImages:
        """The deletable images of the measured classes."""
        return of_classes(self.parts.deletable, self.classes)

    def routed(self, adapters: int, source: KeySource, seed: int) -> Routed:
        """Make keys of so many adapters from the core, and encode images by the same encoder."""
        network = AdapterBackbone(dict(self.router.config.architecture), adapters, source)
        network.encoder = self.router.encoder
        set_public_statistics(network, self.parts.core, seed)

        def encoded(data: IndexedImages) -> Records:
            rows = encode_records(network, data, 1, data.image_shape[:2])
            return Records.of_rows(rows, network.encoder.out_dim)[0]

        return Routed(network, encoded(self.parts.deletable), encoded(self.held_out))

    def labels_and_indices(self, count: int) -> tuple[list[int], list[int]]:
        """Return what to ask a generator for: the same number of images of each measured class."""
        labels = np.repeat(self.classes, count).tolist()
        return labels, list(range(count)) * len(self.classes)


def load_world(
    division: DivisionName, seed: int, folder: Path, overrides: list[str], tuning: bool = False
) -> World:
    """Train what all generators share, or find it.

    Args:
        division: how images are divided.
        seed: of the trainings.
        folder: where backbones are kept.
        overrides: of the recipe of the backbone.
        tuning: hold out a part of the training images in the place of the test images, to choose settings by;
            another part with every seed.
    """
    config = load_config(ROOT / "configs" / "digits_ddpm.yaml", [*overrides, f"seed={seed}"])
    split, core = load_split(config.data), DIVISIONS[division]
    if tuning:
        split = stratified_split(split.train, _FOR_TUNING, seed=1 + seed)
    parts = split_core(split.train, core)
    classes = tuple(split.train.class_index(name) for name in core.unseen_classes or split.train.class_names)
    judge = train_judge(
        split.train.all_images(), split.train.labels, len(split.train.class_names), config.evaluation.judge, 0
    )
    backbone, seconds = _backbone(config, parts, folder)
    return World(
        config,
        split.train,
        parts,
        of_classes(split.test, classes),
        classes,
        Recogniser(judge),
        Measurer(JudgeFeatures(judge)),
        backbone,
        seconds,
        _router(parts, config),
    )


def _backbone(
    config: RunConfig, parts: CoreSplit, folder: Path
) -> tuple[ClassConditionalDDPMPipeline, float]:
    """Train the backbone on the core, or find it."""
    path = folder / digest_json([config.digest, parts.digest])[:16]
    if path.exists():
        found = load_generator(path, "class-conditional", config.sampling, config.noise)
        assert isinstance(found, ClassConditionalDDPMPipeline)
        return found, 0.0
    started = time.perf_counter()
    trained, _ = fit(config, parts.core, description="train backbone")
    assert isinstance(trained, ClassConditionalDDPMPipeline)
    seconds = time.perf_counter() - started
    unfinished = path.with_suffix(".part")
    trained.save_pretrained(unfinished)
    unfinished.rename(path)
    trained.scheduler = build_sampler(config.sampling.sampler, config.noise.build())
    return trained, seconds


def _router(parts: CoreSplit, config: RunConfig) -> AdapterBackbone:
    """Train the encoder that routes on the core, not for longer than the backbone."""
    least = ["model.adapters.count=1", "model.adapters.neighbours=1"]
    images = min(_ROUTER_IMAGES, config.training.images)
    recipe = load_recipe(
        ROOT / "configs" / "digits_adapters.yaml",
        [*least, f"training.images={images}", f"seed={config.seed}"],
    )
    assert isinstance(recipe, ClassifierRunConfig)
    trained, _ = fit_classifier(recipe, parts.core, parts.deletable, description="train router")
    assert isinstance(trained, TrainedEnsemble)
    assert isinstance(trained.network.encoder, nn.Module)
    return trained.network
