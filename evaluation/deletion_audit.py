"""Judge deletions from one generator against three oracles: the retrain gap, leakage, copies.

    python -m evaluation.deletion_audit --out runs/audit

Trains ``configs/digits_spm.yaml`` and judges it; then, from copies of that run, deletes class 3, and a tenth
of the images at random; finds or trains three oracles of each deletion, and judges again. Writes the
scorecards, without the definitions, to ``evaluation/results/deletion_audit.json``. Runs that are complete
are found again, so an interrupted measurement continues.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gen_unlearn.atomic import write_text
from gen_unlearn.commands.evaluate import evaluate
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.oracles import find_oracles
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.train import train
from gen_unlearn.config import load_config
from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.repro import software_versions
from gen_unlearn.runs import RunFolder

ROOT = Path(__file__).parent
RECIPE = ROOT.parent / "configs" / "digits_spm.yaml"
REQUESTS = {"class 3": ForgetRequest(classes=("3",)), "tenth": ForgetRequest(fraction=0.1)}
KEPT = ("value", "standard_error", "floor", "details")


def main() -> None:
    """Parse the command line, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/audit"), help="folder for the runs")
    parser.add_argument("--oracles", type=int, default=3, help="oracles of each deletion")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="recipe override")
    parser.add_argument("--result", type=Path, default=ROOT / "results" / "deletion_audit.json")
    arguments = parser.parse_args()
    config = load_config(RECIPE, arguments.overrides)
    base = train(config, arguments.out / "base")
    evaluate(base)
    found = {}
    for name, request in REQUESTS.items():
        run = _deleted(base, arguments.out / name.replace(" ", "-"), request)
        seeds = range(config.seed, config.seed + arguments.oracles)
        oracles = find_oracles(run, arguments.out / "oracles", seeds)
        found[name] = _summary(run, evaluate(run, oracles))
    result = {
        "command": "python -m evaluation.deletion_audit",
        "recipe": config.digest,
        "versions": software_versions(),
        "deletions": found,
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.result, json.dumps(result, indent=2) + "\n")


def _deleted(base: RunFolder, path: Path, request: ForgetRequest) -> RunFolder:
    """Return a copy of a run, with its samples, from which something was deleted."""
    if not path.exists():
        unfinished = path.with_name(f"{path.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        copy = RunFolder.open(Path(shutil.copytree(base.path, unfinished)))
        forget(copy, request.resolve(copy).forget_set, keep_comparison=True)
        unfinished.rename(path)
    return RunFolder.open(path)


def _summary(run: RunFolder, card: Scorecard) -> dict[str, Any]:
    return {
        "removed": sum(receipt.removed for receipt in run.receipts()),
        "protocol": card.protocol,
        "measures": {
            measure.name: {name: asdict(measure)[name] for name in KEPT} for measure in card.measures
        },
        "notes": list(card.notes),
    }


if __name__ == "__main__":
    main()
