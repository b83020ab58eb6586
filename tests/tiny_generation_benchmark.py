"""A benchmark of generators of a few seconds: digits, tiny networks, three forget sets, two methods."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from gen_unlearn.benchmark.generation.recipe import GenerationRecipe
from gen_unlearn.recipes import validated

TINY: dict[str, Any] = {
    "name": "tiny",
    "task": "generation",
    "generator": {
        "data": {"source": "digits", "test_fraction": 0.2},
        "model": {
            "kind": "class-conditional",
            "block_out_channels": [8, 8],
            "norm_num_groups": 4,
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
            "layers_per_block": 1,
        },
        "training": {"images": 24, "batch_size": 12, "warmup_images": 12},
        "sampling": {"num_inference_steps": 2},
        "evaluation": {"judge": {"epochs": 1, "width": 8, "feature_dim": 8}},
    },
    "split": {"heldout": 1200},
    "forget_sets": [
        {"name": "class 3", "choose": {"kind": "class", "classes": ["3"]}},
        {"name": "memorised", "choose": {"kind": "random", "count": 3}, "repeats": 20},
        {
            "name": "deletable",
            "choose": {"kind": "random", "count": 5},
            "outside_core_of": "SPM",
        },
    ],
    "methods": [
        {"method": "fine-tune", "settings": {"steps": 2, "batch_retain": 8}},
        {"method": "neggrad", "settings": {"steps": 2, "batch_forget": 8, "lr": 1e-4}},
    ],
    "designs": [
        {
            "name": "SPM",
            "settings": {"model": {"kind": "semi-parametric"}, "core": {"mode": "public"}},
            "sets": ["deletable"],
        }
    ],
    "seeds": 1,
    "measure": {"images_per_class": 3, "attacked_images": 5},
}


def tiny_generation(**changes: Any) -> GenerationRecipe:
    """Return the recipe with some of its sections replaced."""
    recipe: GenerationRecipe = validated(GenerationRecipe, deepcopy(TINY) | changes, "tiny")
    return recipe
