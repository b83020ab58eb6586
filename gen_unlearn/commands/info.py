"""Describe a run, or the installed software."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gen_unlearn.receipts import promise_of
from gen_unlearn.repro import software_versions
from gen_unlearn.runs import RunFolder


def describe_software() -> dict[str, Any]:
    """Return versions and devices."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return software_versions() | {"gpu": device, "cpu_threads": torch.get_num_threads()}


def describe_run(path: Path) -> dict[str, Any]:
    """Return what a run is, what it holds and what was deleted from it."""
    run = RunFolder.open(path)
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
    if run.is_semi_parametric:
        store = run.exemplar_folder()
        facts["core"] = run.recipe.core.mode
        facts["level"] = promise_of(run.recipe.task, run.recipe.core.mode)[1]
        counts = np.bincount(store.labels, minlength=len(store.class_names))
        facts["exemplars"] = len(store)
        facts["exemplars_per_class"] = dict(zip(store.class_names, counts.tolist(), strict=True))
    receipts = run.receipts()
    facts["deletions"] = len(receipts)
    facts["deleted_images"] = sum(receipt.removed for receipt in receipts)
    facts["ledger_head"] = run.ledger.head
    facts["evaluated"] = run.scorecard_path.exists()
    return facts
