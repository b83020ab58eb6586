"""Work out and simulate what several processes gain, at a million images and at ten thousand adapters.

    python -m evaluation.scaling

Nothing is trained, no GPU is needed, and one process plays all of them: images are routed to adapters by the
real routing, adapters and blocks of images are dealt out by the real code, networks are built to be counted.
Prints tables, and writes ``evaluation/results/scaling.json``. What is assumed, as the speed of a network, is
in the result beside what follows from it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.scaling_adapters import AdapterWorld, adapter_tables
from evaluation.scaling_models import Assumed, memory_tables, step_table
from gen_unlearn.atomic import write_text
from gen_unlearn.metrics.feature_sets import BLOCK
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.repro import digest_json, software_versions

RESULT = Path(__file__).parent / "results" / "scaling.json"


@dataclass(frozen=True)
class ScalingConfig:
    """What is simulated.

    Attributes:
        images: how many there are.
        processes: numbers of processes.
        world: the adapters, and the images that are routed to them.
        assumed: speeds that were not measured.
        seed: of everything random.
    """

    images: int = 1_000_000
    processes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    world: AdapterWorld = field(default_factory=AdapterWorld)
    assumed: Assumed = field(default_factory=Assumed)
    seed: int = 0


def main() -> None:
    """Parse the command line, simulate, print the tables and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=ScalingConfig.images)
    parser.add_argument("--adapters", type=int, default=AdapterWorld.adapters)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT, help="file of the result")
    arguments = parser.parse_args()
    world = AdapterWorld(adapters=arguments.adapters)
    config = ScalingConfig(images=arguments.images, world=world, seed=arguments.seed)
    started = time.perf_counter()
    tables = simulate(config)
    for title, rows in tables.items():
        sys.stdout.write(f"\n{title}\n" + "".join(f"  {_line(row)}\n" for row in rows))
    recipe = asdict(config)
    result = {
        "command": "python -m evaluation.scaling",
        "recipe": recipe,
        "recipe_digest": digest_json(recipe),
        "seconds": round(time.perf_counter() - started),
        "versions": software_versions(),
        "tables": tables,
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.result, json.dumps(result, indent=2) + "\n")


def simulate(config: ScalingConfig) -> dict[str, list[dict[str, Any]]]:
    """Return every table by its title, a row a dictionary."""
    return {
        "blocks": block_table(config),
        "steps": step_table(config.processes, config.assumed),
        **memory_tables(config.images, config.seed),
        **adapter_tables(config.world, config.images, config.processes, config.seed),
    }


def block_table(config: ScalingConfig) -> list[dict[str, Any]]:
    """Tell how busy processes are that take blocks of images in turn, as sampling and extraction do."""
    sizes = {"features": BLOCK, "sampling": SamplingConfig.batch_size}
    return [
        {
            "work": work,
            "images": images,
            "block": size,
            "processes": processes,
            "efficiency": round(block_efficiency(images, size, processes), 4),
        }
        for work, size in sizes.items()
        for images in (config.images, config.images // 20)
        for processes in config.processes
    ]


def block_efficiency(images: int, block: int, processes: int) -> float:
    """Return mean over greatest number of images of a process, if block *b* goes to process *b* mod P."""
    starts = np.arange(0, images, block)
    lengths = np.minimum(block, images - starts)
    of_process = np.bincount(np.arange(len(starts)) % processes, lengths, minlength=processes)
    return float(of_process.mean() / of_process.max())


def _line(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.items())


if __name__ == "__main__":
    main()
