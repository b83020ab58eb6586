"""Reproduce the digits benchmark of the specification: unlearned perceptrons against retrained ones.

    python -m evaluation.digits_regression --split-seeds 3 --models 32

On every split it trains originals and retrained networks, and unlearns every original by every method. It
prints what it measures beside the accepted ranges, and PASS or FAIL for what must hold on every split. The
ranges are those of seven other splits: a value may miss its range by chance, and is listed. Writes
``evaluation/results/digits_regression.json``. The exit code is 1 if an assertion failed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from evaluation.digits_expected import EXPECTED, OTHERS, methods, mild_fine_tuning
from evaluation.digits_measures import (
    Row,
    assertions,
    inside,
    measure_others,
    measure_retrained,
    measure_row,
    misses,
)
from evaluation.digits_pools import class_world, random_world
from gen_unlearn.atomic import write_text
from gen_unlearn.repro import software_versions

RESULT = Path(__file__).parent / "results" / "digits_regression.json"
BATCH = 50
"""Images of a step, as in training.

At 64, which leaves 4 of 900 for the last step, fine-tuning and SCRUB at a rate of 0.1 end at about 95 and 90
per cent on retained images, where the reference has 98.3 and 95.6.
"""


def main() -> None:
    """Parse the command line, measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split-seeds", type=int, default=1, help="number of splits, with seeds from 0")
    parser.add_argument("--models", type=int, default=32, help="originals, and as many retrained networks")
    parser.add_argument("--batch-forget", type=int, default=BATCH)
    parser.add_argument("--batch-retain", type=int, default=BATCH)
    parser.add_argument("--result", type=Path, default=RESULT, help="file of the result")
    arguments = parser.parse_args()
    batches = {"forget": arguments.batch_forget, "retain": arguments.batch_retain}
    torch.set_num_threads(1)
    found = []
    for seed in range(arguments.split_seeds):
        found.append(measure(seed, arguments.models, batches))
        sys.stdout.write(report(found[-1]) + "\n")
        sys.stdout.flush()
    result = {
        "command": _command(arguments.split_seeds, arguments.models, batches),
        "versions": software_versions(),
        "models": arguments.models,
        "batches": batches,
        "splits": found,
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.result, json.dumps(result, indent=2) + "\n")
    if not all(checked["holds"] for split in found for checked in split["assertions"].values()):
        raise SystemExit(1)


def measure(split_seed: int, models: int, batches: Mapping[str, int]) -> dict[str, Any]:
    """Return everything that is measured on one split.

    Args:
        split_seed: of the split and of all that is random on it.
        models: originals, and as many retrained networks; 6 at least, so that halves can be attacked.
        batches: images of a step that are to ``"forget"`` and to ``"retain"``.
    """
    if models < 6:
        raise ValueError(f"expected at least 6 models, whose halves can be attacked, got {models}")
    started, accelerator = time.perf_counter(), Accelerator(cpu=True)
    world = random_world(split_seed, models)
    rows = {"Retrain": measure_retrained(world), "Original": measure_row(world, world.originals)}
    pools = {}
    for name, method in methods(batches["forget"], batches["retain"]).items():
        pools[name] = world.unlearned(method, accelerator)
        rows[name] = measure_row(world, pools[name])
    mild = world.unlearned(mild_fine_tuning(batches["retain"]), accelerator)
    of_class = class_world(world, world.unseen.class_names[0])
    others = measure_others(world, pools["FT 10 ep lr .1"], mild, of_class)
    return {
        "split_seed": split_seed,
        "data": world.case.splits.digest,
        "forget": world.case.forget.digest,
        "mislabelled images to forget": int(world.mislabelled.sum()),
        "rows": rows,
        "others": others,
        "assertions": assertions(rows),
        "outside accepted ranges": misses(rows, others),
        "seconds": time.perf_counter() - started,
    }


def report(split: Mapping[str, Any]) -> str:
    """Return what was measured on one split as text, with the accepted ranges and what must hold."""
    wrong = split["mislabelled images to forget"]
    lines = [f"split {split['split_seed']} ({wrong} mislabelled images to forget, {split['seconds']:.0f} s)"]
    lines.append(_HEAD)
    lines += [_line(name, row) for name, row in split["rows"].items()]
    lines.append("")
    for name, value in split["others"].items():
        reference, accepted = OTHERS[name]
        verdict = "" if accepted is None else f"  {_range(accepted)}  {_verdict(inside(value, accepted))}"
        lines.append(f"{name:32} {value:9.4f}  ref {reference}{verdict}")
    lines.append("")
    for name, checked in split["assertions"].items():
        value = "none" if checked["value"] is None else f"{checked['value']:.3f}"
        lines.append(f"{'PASS' if checked['holds'] else 'FAIL'}  {name}: {value}")
    lines += [f"outside: {miss}" for miss in split["outside accepted ranges"]]
    return "\n".join([*lines, ""])


_HEAD = (
    f"{'row':16} {'forget/retain/unseen':>20} {'gap':>5} {'ToW':>5} {'AUC':>5} {'TPR@1%':>6} {'mislab.':>7}"
    f"  {'forget in':>9}     {'AUC in':>9}"
)


def _line(name: str, row: Row) -> str:
    expected, forget = EXPECTED[name], row["accuracies"]["forget"]
    accuracies = "/".join(f"{value:.1f}" for value in row["accuracies"].values())
    numbers = [
        f"{row['gap']:5.2f}",
        f"{row['tow']:5.3f}",
        f"{row['auc']:5.3f}",
        _optional(row["tpr_1"], 6),
        _optional(row["auc_mislabelled"], 7),
    ]
    return (
        f"{name:16} {accuracies:>20} {' '.join(numbers)}"
        f"  {_range(expected.accept_forget):>9} {_verdict(inside(forget, expected.accept_forget)):3}"
        f" {_range(expected.accept_auc):>9} {_verdict(inside(row['auc'], expected.accept_auc))}"
    )


def _optional(value: float | None, width: int) -> str:
    return "-".rjust(width) if value is None else f"{value:{width}.3f}"


def _range(accepted: tuple[float, float]) -> str:
    return f"{accepted[0]:g}-{accepted[1]:g}" if accepted[0] >= 0 else f"±{accepted[1]:g}"


def _verdict(holds: bool) -> str:
    return "in" if holds else "OUT"


def _command(splits: int, models: int, batches: Mapping[str, int]) -> str:
    words = ["python", "-m", "evaluation.digits_regression", "--split-seeds", str(splits)]
    words += ["--models", str(models)]
    words += [
        word for name, count in batches.items() if count != BATCH for word in (f"--batch-{name}", str(count))
    ]
    return shlex.join(words)


if __name__ == "__main__":
    main()
