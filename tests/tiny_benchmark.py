"""A benchmark of a few seconds: digits, perceptrons of width 8, two forget sets, three methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gen_unlearn.benchmark.recipe import BenchmarkRecipe
from gen_unlearn.recipes import validated

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "digits"},
    "split": {"heldout": 1000, "test": 200},
    "network": {"kind": "mlp", "width": 8},
    "training": {"epochs": 3, "batch_size": 50, "learning_rate": 0.1},
    "forget_sets": [
        {"name": "random", "choose": {"kind": "random", "count": 40}},
        {"name": "class 3", "choose": {"kind": "class", "classes": ["3"]}},
    ],
    "methods": [
        {"method": "fine-tune", "settings": {"epochs": 1}},
        {"method": "neggrad-plus", "settings": {"epochs": 1}},
        {"method": "gradient-ascent", "settings": {"epochs": 1, "lr": 0.001}},
    ],
    "seeds": 2,
    "measure": {"retained_images": 200, "scores": [], "functional": "none"},
}

RANDOM = TINY["forget_sets"][:1]
FINE_TUNE = TINY["methods"][:1]


def tiny_recipe(**changes: Any) -> BenchmarkRecipe:
    recipe: BenchmarkRecipe = validated(BenchmarkRecipe, TINY | changes, "tiny")
    return recipe


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without its times, which differ from run to run."""
    cost = {name: value for name, value in row["cost"].items() if not name.endswith("seconds")}
    return row | {"cost": cost}
