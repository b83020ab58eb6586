"""How long light commands take from start to end, and each stage of the demo.

python -m evaluation.command_speed demo/summary.json                      seconds and shares of its stages
python -m evaluation.command_speed before/summary.json after/summary.json    of two demos
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.timing import Row, seconds_of
from gen_unlearn.commands.train import train
from gen_unlearn.config import load_recipe

CONFIGS = Path(__file__).parents[1] / "configs"
_TARGET = 0.5

_GENERATOR = (
    "model.block_out_channels=[8, 16]",
    "model.norm_num_groups=4",
    "model.layers_per_block=1",
    "training.images=24",
    "training.batch_size=24",
)
_CLASSIFIER = ("model.encoder.width=8", "model.encoder.depth=0", "training.images=64")


def main() -> None:
    """Print the stages of one demo, or of two side by side, as a table of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("summaries", type=Path, nargs="+", help="summary.json of a demo, before and after")
    sys.stdout.write(stages_table([demo_stages(path) for path in parser.parse_args().summaries]))


def command_rows(repeats: int) -> list[Row]:
    """Time commands that compute nothing, each in a process of its own, on runs of the digits."""
    python = f"python alone: {_median(['-c', ''], repeats):.2g} s"
    imports = _median(["-c", "import numpy, pydantic, yaml"], repeats)
    few = min(repeats, 3)
    with tempfile.TemporaryDirectory() as scratch:
        generator, classifier, ensemble = _runs(Path(scratch))
        light = {
            "--help": (["--help"], 0),
            "info": (["info"], 0),
            "info RUN, a generator": (["info", generator], 0),
            "info RUN, a classifier": (["info", classifier], 0),
            "forget RUN, a class that there is not": (["forget", generator, "--class", "x"], 2),
            "verify, a folder that is no run": (["verify", scratch], 2),
        }
        rows = [
            Row.of(
                f"gen-unlearn {work}",
                python,
                _seconds(_verb(*words), repeats, status),
                " s",
                _TARGET,
                reason=f"importing NumPy, pydantic and PyYAML takes {imports:.2g} s of it",
            )
            for work, (words, status) in light.items()
        ]
        torch = _median(["-c", "import scipy.linalg, torch"], few)
        seconds = _seconds(_verb("info", ensemble), few)
        reason = (
            "whether a deletion is exact to the bit depends on what SciPy and torch compute with here; "
            f"importing them alone takes {torch:.2g} s"
        )
        work = "gen-unlearn info RUN, an adapter ensemble"
        rows.append(Row.of(work, python, seconds, " s", _TARGET, reason=reason))
    return rows


def demo_stages(summary: Path) -> dict[str, float]:
    """Return the seconds of each stage of a demo, from its ``summary.json``."""
    stages: dict[str, float] = json.loads(summary.read_text(encoding="utf-8"))["stages"]
    return stages


def stages_table(demos: Sequence[dict[str, float]]) -> str:
    """Return the seconds of stages and their shares as Markdown, one pair of columns for each demo."""
    names = ("before", "after") if len(demos) == 2 else ("seconds",) * len(demos)
    lines = [
        f"| stage | {' | '.join(f'{name} | share' for name in names)} |",
        f"|---|{'---:|---:|' * len(demos)}",
    ]
    totals = [sum(stages.values()) for stages in demos]
    for stage in dict.fromkeys(stage for stages in demos for stage in stages):
        cells = [
            f"{stages.get(stage, 0):.1f} s | {stages.get(stage, 0) / total:.1%}"
            for stages, total in zip(demos, totals, strict=True)
        ]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    lines.append(f"| all | {' | '.join(f'{total:.1f} s | 100.0%' for total in totals)} |")
    return "\n".join(lines) + "\n"


def _runs(folder: Path) -> tuple[str, str, str]:
    """Train a generator, a classifier and an adapter ensemble, as small as they can be."""
    recipes = {
        "digits_spm.yaml": _GENERATOR,
        "digits_spm_classifier.yaml": _CLASSIFIER,
        "digits_adapters.yaml": (*_CLASSIFIER, "model.adapters.count=20", "model.adapters.neighbours=3"),
    }
    for name, overrides in recipes.items():
        train(load_recipe(CONFIGS / name, overrides), folder / name)
    generator, classifier, ensemble = (str(folder / name) for name in recipes)
    return generator, classifier, ensemble


def _verb(*words: str) -> list[str]:
    return ["-m", "gen_unlearn", *words]


def _seconds(arguments: list[str], repeats: int, status: int = 0) -> list[float]:
    """Return the seconds of a Python process, after one that fills the caches of files.

    Modules are compiled once, as they are where the package is installed. A RuntimeError says that a process
    ended with another status than it should.
    """
    command = [sys.executable, *arguments]
    compiling = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def work() -> None:
        ended = subprocess.run(command, capture_output=True, check=False, env=compiling)
        if ended.returncode != status:
            raise RuntimeError(f"expected status {status}, got {ended.returncode}: {ended.stderr.decode()}")

    work()
    return [seconds_of(work) for _ in range(repeats)]


def _median(arguments: list[str], repeats: int) -> float:
    return float(np.median(_seconds(arguments, repeats)))


if __name__ == "__main__":
    main()
