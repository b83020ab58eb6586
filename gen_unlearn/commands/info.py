"""Describe a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gen_unlearn.adapters.adapter_folder import AdapterFolder
from gen_unlearn.adapters.families import AdaptersConfig
from gen_unlearn.promises import promise_of_recipe
from gen_unlearn.receipts import Level
from gen_unlearn.runs import RunFolder


def describe_run(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a run is, what it holds and what was deleted from it.

    Args:
        path: the run.
        overrides: values of its recipe to use instead, such as ``model.adapters.minimum_batch=1``.

    Raises:
        ValueError: there is no such run, or a value cannot be changed.
    """
    run = RunFolder.open(path).with_overrides(overrides)
    manifest = run.manifest
    assert manifest.training is not None
    facts: dict[str, Any] = {
        "run": str(path),
        "task": run.recipe.task,
        "model": run.recipe.model.kind,
        "parameters": manifest.training.parameters,
        "data": run.recipe.data.source,
        "image_shape": list(manifest.image_shape),
        "recipe": manifest.recipe_digest,
        "without": manifest.without,
        "state": run.state_digest(),
        "seconds_train": round(manifest.training.seconds, 1),
    }
    if run.has_exemplars:
        store = run.exemplar_folder()
        facts["core"] = run.recipe.core.mode
        ensemble = _ensemble(run, len(store)) if run.is_ensemble else {}
        facts["level"] = _level(run)
        counts = np.bincount(store.labels, minlength=len(store.class_names))
        facts["exemplars"] = len(store)
        facts["exemplars_per_class"] = dict(zip(store.class_names, counts.tolist(), strict=True))
        facts |= ensemble
    if (unlearned := manifest.unlearned) is not None:
        named = ("method", "settings", "seed", "forward_samples", "backward_samples", "origin")
        facts["level"] = "approximate"
        facts["unlearned"] = {name: getattr(unlearned, name) for name in named}
    receipts = run.receipts()
    facts["deletions"] = len(receipts)
    facts["deleted_images"] = sum(receipt.removed for receipt in receipts)
    facts["ledger_head"] = run.ledger.head
    facts["evaluated"] = run.scorecard_path.exists()
    return facts


def _level(run: RunFolder) -> Level:
    """Return what a deletion promises; of an ensemble that depends on what torch computes with here."""
    if not run.is_ensemble:
        return promise_of_recipe(run.recipe)[1]
    from gen_unlearn.commands.ensemble_recipe import level_of

    return level_of(run)


def _ensemble(run: RunFolder, records: int) -> dict[str, Any]:
    """Return the facts of an adapter ensemble.

    The load imbalance is what a deletion costs against adapters of equal size, ``n sum(m^2) / (k N)^2``.
    """
    config = run.recipe.model.adapters
    stored, held = AdapterFolder.open(run.adapters_path), run.held_back(config.release)
    sizes = list(stored.sizes.values())
    loads = (
        sum(size**2 for size in sizes) * config.count / (config.neighbours * records) ** 2 if records else 0.0
    )
    return {
        "adapters": config.count,
        "neighbours": config.neighbours,
        "family": config.family if isinstance(config, AdaptersConfig) else "lora",
        "keys": config.keys,
        "adapters_empty": config.count - len(sizes),
        "adapters_waiting": len(stored.waiting),
        "adapters_held_back": len(held.adapters),
        "held_back_until": held.until(config.release),
        "members_smallest": min(sizes, default=0),
        "members_largest": max(sizes, default=0),
        "load_imbalance": round(loads, 3),
        **_reads(run, sizes),
        "adapters_megabytes": round(_bytes_below(run.adapters_path) / 1e6, 3),
    }


def _reads(run: RunFolder, sizes: list[int]) -> dict[str, Any]:
    """Return how many images a deletion of one reads to train LoRA adapters again, each time one is shown."""
    config = run.recipe.model.adapters
    if isinstance(config, AdaptersConfig) or not sizes:
        return {}
    epochs, members = config.lora.epochs, sum(sizes)
    reads = config.neighbours * epochs * sum(size * (size - 1) for size in sizes) / members
    return {
        "reads_per_deletion": round(reads, 1),
        "reads_per_deletion_of_training": round(reads / (epochs * members), 5),
    }


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
