"""Measure the semi-parametric generator against the plain DDPM on digits, over several training seeds.

    python -m evaluation.digits_generation --out runs/digits --seeds 3

Trains ``configs/digits_spm.yaml`` and ``configs/digits_ddpm.yaml`` for each seed, judges both by the same
judge and against the same held-out images, deletes a class from the first, and retrains it without the
class. Writes ``evaluation/results/digits_generation.json`` with a row for each model and seed. Runs that
are complete are found again, so an interrupted measurement continues.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from gen_unlearn.atomic import write_text
from gen_unlearn.commands.evaluate import evaluate
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.train import deleted_from, train
from gen_unlearn.config import load_config
from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.repro import software_versions
from gen_unlearn.runs import RunFolder

ROOT = Path(__file__).parent
FORGOTTEN_CLASS = "3"


def main() -> None:
    """Parse the command line, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of each model")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="recipe override")
    parser.add_argument("--result", type=Path, default=ROOT / "results" / "digits_generation.json")
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.seeds):
        rows.append(_spm_row(arguments.out, seed, arguments.overrides))
        rows.append(_ddpm_row(arguments.out, seed, arguments.overrides))
    result = {
        "command": f"python -m evaluation.digits_generation --seeds {arguments.seeds}",
        "recipes": {
            name: load_config(ROOT.parent / "configs" / f"{name}.yaml").digest
            for name in ("digits_spm", "digits_ddpm")
        },
        "versions": software_versions(),
        "summary": _summary(rows),
        "rows": rows,
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.result, json.dumps(result, indent=2) + "\n")


def _spm_row(out: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train, judge, delete a class, retrain, judge again."""
    run = _trained("digits_spm", out / f"spm-{seed}", seed, overrides)
    complete = run.path / "before.json"
    if not complete.exists():
        write_text(complete, evaluate(run).to_json())
    before = Scorecard.from_file(complete)
    if not run.receipts():
        request = ForgetRequest(classes=(FORGOTTEN_CLASS,)).resolve(run)
        forget(run, request.forget_set, keep_comparison=True)
    config = load_config(run.recipe_path)
    oracle = train(
        config, out / f"spm-{seed}-oracle", *deleted_from([run.path]), description=f"train oracle {seed}"
    )
    return {
        "model": "spm",
        "seed": seed,
        "all_classes": _measures(before),
        "after_deletion": _measures(evaluate(run, [oracle])),
    }


def _ddpm_row(out: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    run = _trained("digits_ddpm", out / f"ddpm-{seed}", seed, overrides)
    return {"model": "ddpm", "seed": seed, "all_classes": _measures(evaluate(run))}


def _trained(recipe: str, folder: Path, seed: int, overrides: list[str]) -> RunFolder:
    config = load_config(ROOT.parent / "configs" / f"{recipe}.yaml", [*overrides, f"seed={seed}"])
    return train(config, folder, description=f"train {folder.name}")


def _measures(card: Scorecard) -> dict[str, dict[str, Any]]:
    kept = ("value", "standard_error", "floor")
    return {
        measure.name: {name: value for name, value in asdict(measure).items() if name in kept}
        for measure in card.measures
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds of every measure, by model and stage."""
    summary: dict[str, Any] = {}
    for model in ("spm", "ddpm"):
        for stage in ("all_classes", "after_deletion"):
            members = [row[stage] for row in rows if row["model"] == model and stage in row]
            for name in members[0] if members else []:
                values = [member[name]["value"] for member in members]
                spread = stdev(values) if len(values) > 1 else None
                summary[f"{model}.{stage}.{name}"] = {"mean": mean(values), "sd_over_seeds": spread}
    return summary


if __name__ == "__main__":
    main()
