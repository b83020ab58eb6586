"""Adapter ensembles that generate, tiny enough to be trained in seconds."""

from __future__ import annotations

from command_line import CONFIGS

RECIPE = CONFIGS / "digits_lora.yaml"
TINY = {
    "data.test_fraction": "0.5",
    "core.fraction": "0.8",
    "model.block_out_channels": "[8, 16]",
    "model.norm_num_groups": "4",
    "model.layers_per_block": "1",
    "model.router.encoder.width": "4",
    "model.router.encoder.depth": "0",
    "model.router.training.images": "64",
    "model.router.training.batch_size": "32",
    "model.adapters.count": "12",
    "model.adapters.lora.rank": "2",
    "model.adapters.lora.epochs": "2",
    "model.adapters.lora.batch_size": "4",
    "model.adapters.lora.stack": "2",
    "noise.num_train_timesteps": "100",
    "training.images": "48",
    "training.batch_size": "24",
    "sampling.num_inference_steps": "2",
    "evaluation.images_per_class": "3",
    "evaluation.null_images": "5",
    "evaluation.judge.epochs": "1",
    "evaluation.judge.width": "8",
    "evaluation.comparison.permutations": "20",
    "evaluation.membership.images": "20",
}
SEMI_PARAMETRIC = ("model.backbone=semi-parametric", "model.adapters.lora.stack=1")


def tiny_ensemble(*overrides: str) -> list[object]:
    """Return the options of a tiny ensemble for the command line."""
    chosen = [f"{key}={value}" for key, value in TINY.items()]
    return ["--config", RECIPE, *(word for value in (*chosen, *overrides) for word in ("--set", value))]
