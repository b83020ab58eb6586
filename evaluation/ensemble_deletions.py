"""Delete random batches of images from an adapter ensemble on disk, and replay what is left.

    gen-unlearn train --config configs/digits_adapters.yaml --out runs/ridge
    gen-unlearn train --config configs/digits_adapters.yaml --set model.adapters.family=sgd --out runs/sgd
    python -m evaluation.ensemble_deletions runs/ridge runs/sgd --out runs/deleted

Works on copies of the runs in ``--out``. Single images and batches take turns, of up to a hundredth of the
images that are left and of up to 20; each is one deletion as ``gen-unlearn forget`` makes it: two flushed
changes, with receipts and ledger. Then every adapter is fit again from the images that are left, and the
SHA-256 of every file is compared. The copies stay, so that two processes can do that once more:
``torchrun --nproc_per_node 2 -m gen_unlearn verify COPY --replay``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from gen_unlearn.atomic import write_text
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.verify import verify
from gen_unlearn.commands.verify_ensemble import replay_adapters
from gen_unlearn.forget import ForgetSet
from gen_unlearn.repro import numpy_generator, software_versions
from gen_unlearn.runs import RunFolder

RESULT = Path(__file__).parent / "results" / "ensemble_deletions.json"
LARGEST_BATCH = 20


def main() -> None:
    """Parse the command line, delete, replay, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="an adapter ensemble")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the copies")
    parser.add_argument("--batches", type=int, default=200, help="deletions from each run")
    parser.add_argument("--seed", type=int, default=0, help="of what is deleted")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    found = {}
    for path in arguments.runs:
        copy = RunFolder.open(Path(shutil.copytree(path, arguments.out / path.name)))
        found[path.name] = delete_and_replay(copy, arguments.batches, arguments.seed)
    result = {
        "command": f"python -m evaluation.ensemble_deletions, {arguments.batches} batches",
        "versions": software_versions() | {"cpu_threads": torch.get_num_threads()},
        "runs": found,
    }
    write_text(arguments.result, json.dumps(result, indent=2) + "\n")


def delete_and_replay(run: RunFolder, batches: int, seed: int) -> dict[str, Any]:
    """Delete random batches from a run; return what it took, and whether the rest equals a fresh fit."""
    draw = numpy_generator(seed, "batches")
    accuracy = [held_out_accuracy(run)]
    seconds: dict[str, list[float]] = {"single": [], "batch": []}
    deleted = 0
    for batch in range(batches):
        ids = run.exemplar_folder().ids
        largest = max(2, min(LARGEST_BATCH, len(ids) // 100))
        size = 1 if batch % 2 == 0 else int(draw.integers(2, largest + 1))
        chosen = ids[draw.choice(len(ids), size, replace=False)]
        started = time.perf_counter()
        receipt, _ = forget(run, ForgetSet(chosen, f"batch {batch}"))
        seconds["single" if size == 1 else "batch"].append(time.perf_counter() - started)
        deleted += receipt.removed
    accuracy.append(held_out_accuracy(run))
    failed = [str(check) for check in verify(run) if not check.passed]
    return {
        "recipe": run.recipe.digest,
        "adapters": run.classifier_config.model.adapters.count,
        "batches": batches,
        "deleted": deleted,
        "remaining": receipt.remaining,
        "level": receipt.level,
        "seconds_single": round(median(seconds["single"]), 4),
        "seconds_batch": round(median(seconds["batch"]), 4),
        "replay": replay_adapters(run),
        "failed_checks": failed,
        "held_out_accuracy": accuracy,
    }


def held_out_accuracy(run: RunFolder) -> float:
    """Return the share of held-out images that are given their class."""
    test = run.load_split().test
    probabilities = run.load_classifier().probabilities(test.images)
    return round(float(np.mean(probabilities.argmax(axis=1) == test.labels)), 4)


if __name__ == "__main__":
    main()
