"""Drive the command line in tests: tiny recipes, and runs to try commands on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from gen_unlearn.cli import app

CONFIGS = Path(__file__).parents[1] / "configs"
TINY = {
    "data.test_fraction": "0.5",
    "model.block_out_channels": "[8, 16]",
    "model.norm_num_groups": "4",
    "model.layers_per_block": "1",
    "noise.num_train_timesteps": "100",
    "training.images": "96",
    "training.batch_size": "24",
    "training.exemplars_per_class": "[1, 3]",
    "sampling.num_inference_steps": "2",
    "evaluation.images_per_class": "3",
    "evaluation.null_images": "5",
    "evaluation.judge.epochs": "1",
    "evaluation.judge.width": "8",
    "evaluation.comparison.permutations": "20",
    "evaluation.membership.images": "40",
    "evaluation.membership.exemplars_per_class": "8",
    "evaluation.membership.attack.loss_draws": "1",
    "evaluation.membership.attack.secmi_stride": "50",
}
TINY_OVERRIDES = tuple(f"{key}={value}" for key, value in TINY.items())


def run_command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def works(*arguments: object) -> dict[str, Any]:
    """Run a command with ``--json`` and return the object on the last line."""
    result = run_command(*arguments, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout.splitlines()[-1], parse_constant=_refuse)
    assert isinstance(facts, dict)
    return facts


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def refused(*arguments: object) -> str:
    """Run a command that must fail; return its one line on standard error."""
    result = run_command(*arguments)
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def heavy_imports(*arguments: object) -> list[str]:
    """Run a command in a fresh interpreter; return the packages that take long to import among its own."""
    heavy = {"accelerate", "datasets", "diffusers", "matplotlib", "scipy", "sklearn", "torch", "transformers"}
    code = (
        "import sys\nfrom gen_unlearn.cli import app\n"
        f"try:\n    app()\nfinally:\n    sys.stderr.write(' '.join(sorted({heavy} & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode in (0, 2), done.stderr
    said, _, imported = done.stderr.rpartition("\n")
    assert not said or said.startswith("error: "), done.stderr
    return imported.split()


def tree(folder: Path) -> dict[str, int]:
    """Return everything below a folder, with the time of its last change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def tiny(base: str = "digits_spm.yaml") -> list[object]:
    overrides = [f"{key}={value}" for key, value in TINY.items()]
    return ["--config", CONFIGS / base, *(word for override in overrides for word in ("--set", override))]


@dataclass(frozen=True)
class Shop:
    """Runs that tests share and must not change.

    `deleted` was evaluated before class 3 was deleted from it; `oracle` is its oracle. `plain` is
    class-conditional.
    """

    fresh: Path
    evaluated: Path
    deleted: Path
    oracle: Path
    plain: Path

    @classmethod
    def open(cls, root: Path) -> Shop:
        """Train what is for sale."""
        shop = cls(*(root / name for name in ("fresh", "evaluated", "deleted", "oracle", "plain")))
        works("train", *tiny(), "--out", shop.fresh)
        shutil.copytree(shop.fresh, shop.evaluated)
        works("evaluate", shop.evaluated)
        shutil.copytree(shop.evaluated, shop.deleted)
        works("forget", shop.deleted, "--class", "3", "--keep-comparison")
        works("train", *tiny(), "--out", shop.oracle, "--without", shop.deleted)
        works("train", *tiny("digits_ddpm.yaml"), "--out", shop.plain)
        return shop
