"""Adapter ensembles on disk that need no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from command_line import CONFIGS
from run_factory import random_images, snapshot

from gen_unlearn.adapters.encoding import encode_records, set_public_statistics
from gen_unlearn.adapters.recipe import ensemble_recipe
from gen_unlearn.commands.trained_ensemble import TrainedEnsemble
from gen_unlearn.config import load_recipe
from gen_unlearn.core import CoreSplit
from gen_unlearn.data import IndexedImages
from gen_unlearn.manifest import RunManifest, TrainingRecord
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.encoders import encoder_architecture
from gen_unlearn.repro import digest_state
from gen_unlearn.runs import RunFolder

TINY = (
    "data.test_fraction=0.5",
    "model.encoder.width=4",
    "model.encoder.depth=0",
    "model.adapters.count=12",
    "model.adapters.neighbours=2",
    "training.images=64",
    "training.batch_size=32",
    "training.shift=0",
)
RIDGE = ("model.adapters.family=ridge",)
SGD = ("model.adapters.family=sgd", "model.adapters.sgd.epochs=2")
FAMILIES = {"ridge": RIDGE, "sgd": SGD}


def make_ensemble_run(
    path: Path, data: IndexedImages, family: str = "ridge", overrides: tuple[str, ...] = ()
) -> RunFolder:
    """Make a run of fresh weights over grey images of 8x8, as if it had been trained; its core is made up."""
    config = load_recipe(CONFIGS / "digits_adapters.yaml", (*TINY, *FAMILIES[family], *overrides))
    core = random_images(60, seed=1_000_003)
    torch.manual_seed(0)
    adapters = config.model.adapters
    backbone = AdapterBackbone(encoder_architecture(config.model.encoder, (1, 8, 8)), adapters.count)
    set_public_statistics(backbone, core, seed=0)
    rows = encode_records(backbone, data, adapters.neighbours, (8, 8))
    recipe = ensemble_recipe(config, backbone.public_keys(), data.class_names)
    trained = TrainedEnsemble(backbone, recipe, rows, (8, 8))
    run = RunFolder.create(
        path, config, RunManifest(config.digest, data.digest, data.class_names, data.image_shape)
    )
    run.keep_split(data.select(np.arange(0)), CoreSplit(core, data))
    run.complete_training(trained, TrainingRecord(1.5, 96, 0.5, 100, digest_state(backbone.state_dict())))
    return RunFolder.open(path)


def model_files(run: RunFolder) -> dict[str, bytes]:
    """Return every file of the model."""
    return snapshot(run.model_path)
