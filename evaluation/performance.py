"""Measure speed and memory as ratios, in one run, on this machine.

    python -m evaluation.performance

Each row is a median over repeats with its spread, and names what it is compared with and its target.
The result is ``performance.json`` and, as a table, ``performance.md`` in ``evaluation/results``.
``--only commands`` measures that part again and keeps what was found of the others; ``--only classifiers``,
``ensembles`` and ``imagenet`` add what has tables of its own. Each part is measured in a process of its own:
no threads and no memory of another part are left in it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from evaluation.adapter_speed import adapter_rows
from evaluation.classifier_speed import classifier_rows, imagenet_rows
from evaluation.command_speed import command_rows
from evaluation.decoding_speed import decoding_rows
from evaluation.deletion_speed import deletion_rows
from evaluation.ensemble_speed import ensemble_rows
from evaluation.generator_speed import generator_rows
from evaluation.measuring_speed import measuring_rows
from evaluation.method_speed import method_rows
from evaluation.timing import Row, seconds_of
from gen_unlearn.atomic import write_text
from gen_unlearn.config import load_recipe
from gen_unlearn.processes import process_state
from gen_unlearn.repro import software_versions

RESULTS = Path(__file__).parent / "results"
CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = (
    "digits_spm",
    "digits_ddpm",
    "digits_lora",
    "cifar10_spm",
    "cifar10_spm_classifier",
    "cifar10_small_spm_classifier",
    "imagenet_spm_classifier",
)
PARTS: dict[str, Callable[[int], list[Row]]] = {
    "generators": generator_rows,
    "deletion": deletion_rows,
    "adapters": adapter_rows,
    "methods": method_rows,
    "measuring": measuring_rows,
    "commands": command_rows,
    "decoding": decoding_rows,
    "classifiers": classifier_rows,
    "ensembles": ensemble_rows,
    "imagenet": imagenet_rows,
}
USUAL = tuple(name for name in PARTS if name not in ("classifiers", "ensembles", "imagenet"))
"""Parts that are measured if none is named: a quarter of an hour is enough for them."""


def main() -> None:
    """Measure every part, print the table and write it as JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="times that most of the work is timed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write")
    parser.add_argument("--only", choices=PARTS, help="measure this part alone")
    arguments = parser.parse_args()
    if arguments.only:
        add_part(arguments.only, arguments.repeats, arguments.results)
        return
    for name in USUAL:
        words = ["--only", name, "--repeats", str(arguments.repeats), "--results", str(arguments.results)]
        subprocess.run([sys.executable, "-m", "evaluation.performance", *words], check=True)


def add_part(name: str, repeats: int, results: Path) -> None:
    """Measure a part, and write it beside what was found of the others."""
    path = results / "performance.json"
    parts: dict[str, Any] = {}
    if path.exists():
        parts = json.loads(path.read_text(encoding="utf-8")).get("parts", {})
    parts[name] = measure(name, repeats)
    parts = {name: parts[name] for name in PARTS if name in parts}
    results.mkdir(parents=True, exist_ok=True)
    result = {"command": "python -m evaluation.performance", "recipes": recipes(), "parts": parts}
    write_text(path, json.dumps(result, indent=2) + "\n")
    write_text(path.with_suffix(".md"), table(parts))


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Measure the rows of a part, print them, and return them with how long it took and on what."""
    rows: list[Row] = []
    seconds = seconds_of(lambda: rows.extend(PARTS[name](repeats)))
    for row in rows:
        sys.stdout.write(f"{row}\n")
    sys.stdout.write(f"{name}: {seconds:.0f} s\n\n")
    sys.stdout.flush()
    return {
        "seconds": seconds,
        "repeats": repeats,
        "machine": machine(),
        "versions": software_versions(),
        "rows": [asdict(row) for row in rows],
    }


def recipes() -> dict[str, str]:
    """Return the digests of the recipes whose networks are timed."""
    return {name: load_recipe(CONFIGS / f"{name}.yaml").digest for name in RECIPES}


def machine() -> dict[str, str | int]:
    """Describe what is measured on: the processor, its memory and, if there is one, the accelerator."""
    device = process_state().device
    found: dict[str, str | int] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "memory_gigabytes": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "device": device.type,
    }
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def table(parts: dict[str, Any]) -> str:
    """Write all rows as one Markdown table."""
    lines = ["| work | compared with | measured | target |", "|---|---|---|---|"]
    for part in parts.values():
        for row in (Row(**row) for row in part["rows"]):
            lines.append(f"| {row.work} | {row.compared_with} | {row.measured} | {row.verdict} |")
    return "\n".join(lines) + "\n"


def _processor() -> str:
    """Return the processor's name as Linux has it, or what Python knows of it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


if __name__ == "__main__":
    main()
