"""Condense the result of a benchmark to what is committed.

    python -m evaluation.benchmark_result BENCH evaluation/results/digits_generation_benchmark

Copies the table of the folder BENCH, and writes its numbers to five digits, a line for each method, with
values by seed for the metrics of the tables alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from gen_unlearn.benchmark.by_task import load_any

ROUNDED = (
    "to five digits, values by seed of the tables' metrics alone; the command writes all of them, and a line "
    "for every row"
)
_BY_SEED = ("seeds", "sigma_train", "values")


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", type=Path, help="folder of the benchmark")
    parser.add_argument("result", type=Path, help="files to write, without their endings")
    arguments = parser.parse_args()
    summary = json.loads((arguments.bench / "summary.json").read_text(encoding="utf-8"))
    command = f"gen-unlearn benchmark --config configs/benchmarks/{_config(summary['name'])} --out bench"
    shown = load_any(arguments.bench / "recipe.yaml").measure.table
    text = condensed({"command": command, "rounded": ROUNDED} | summary, set(shown))
    arguments.result.with_suffix(".json").write_text(text, encoding="utf-8")
    shutil.copyfile(arguments.bench / "table.md", arguments.result.with_suffix(".md"))


def condensed(summary: dict[str, Any], by_seed: set[str]) -> str:
    """Return a summary as JSON, a line for each method.

    Args:
        summary: as the benchmark writes it.
        by_seed: metrics whose values are kept seed by seed.
    """
    parts = []
    for one in summary["sets"]:
        lines = ",\n".join(f"   {_line(method, by_seed)}" for method in one["methods"])
        head = json.dumps({key: value for key, value in one.items() if key != "methods"})
        parts.append(f'  {head[:-1]}, "methods": [\n{lines}\n  ]}}')
    rest = json.dumps({key: value for key, value in summary.items() if key != "sets"}, indent=1)
    return f'{rest[:-2]},\n "sets": [\n' + ",\n".join(parts) + "\n ]\n}\n"


def _line(method: dict[str, Any], by_seed: set[str]) -> str:
    cells = {
        metric: {
            key: _rounded(value)
            for key, value in cell.items()
            if value is not None and (metric in by_seed or key not in _BY_SEED)
        }
        for metric, cell in method["cells"].items()
    }
    return json.dumps(method | {"cells": cells}, separators=(",", ":"))


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _config(name: str) -> str:
    """Return the file of the recipe of a name."""
    folder = Path(__file__).parents[1] / "configs" / "benchmarks"
    return next(path.name for path in sorted(folder.glob("*.yaml")) if load_any(path).name == name)


if __name__ == "__main__":
    main()
