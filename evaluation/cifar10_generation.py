"""Measure the generators on CIFAR-10 (JPEG) at 64 channels on one GPU, with one command that can be cut off.

    CUBLAS_WORKSPACE_CONFIG=:4096:8 python -m evaluation.cifar10_generation --out runs/cifar10 \\
        --source TRAIN.parquet --test-source TEST.parquet --minutes 5

or, which is the same, ``accelerate launch --num_processes 1 --module evaluation.cifar10_generation ...``.
The variable is for the adapters, which train with deterministic arithmetic; on a GPU nothing begins without
it. Trains the plain DDPM, the semi-parametric generator with a joint and with a public core, and an adapter
ensemble, all with one budget of images; takes Frechet distances to the held-out images in the features of a
judge that is trained on the training images (and in those of a network of random weights, which show more of
colours than of things); times sampling at 100 and 1,024 exemplars per class and with the full bank, deletions
on disk, and training in float32, bfloat16 and compiled, also at the size of the paper; deletes a class and
compares with models trained without it.

It goes in stages, the most telling first. Each writes its part below ``--out`` as soon as it is done, and
``cifar10_generation.json`` in the folder ``--results`` is put together again; the command, called again,
does what is left, and continues a training that was cut off at its newest resume point. A stage that fails
is noted with its reason, and the others go on; the exit status tells. No stage begins after ``--minutes``;
one other than a training may take some more. With ``--tiny`` everything runs on a CPU in some minutes, to
prove that it does; those numbers say nothing, and go to ``--out``. What lies below ``--out``, and the
result, are of one set of recipes, amounts, device and software: another is refused.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evaluation.cifar10_generation_quality import (
    class_deletion,
    quality,
    real_images,
    retrained,
    retrained_quality,
    trained,
)
from evaluation.cifar10_generation_speed import deletions, sampling_cost, throughput
from evaluation.cifar10_generation_world import (
    CONFIGS,
    DDPM,
    ENSEMBLE,
    PAPER,
    PUBLIC,
    RECIPES,
    SPM,
    TINY,
    Plan,
    World,
    device_name,
)
from gen_unlearn.adapters.strict import strict_arithmetic
from gen_unlearn.atomic import write_text
from gen_unlearn.config import load_config
from gen_unlearn.processes import process_state
from gen_unlearn.repro import digest_json, software_versions
from gen_unlearn.training.checkpoint import TrainingInterruptedError

ROOT = Path(__file__).parent
COMPILED = ["training.compile=true"]
Stage = Callable[[World], dict[str, Any]]

STAGES: dict[str, Stage] = {
    "train DDPM": partial(trained, recipe=DDPM),
    "train SPM": partial(trained, recipe=SPM),
    "real images": real_images,
    "quality of DDPM": partial(quality, recipe=DDPM),
    "quality of SPM": partial(quality, recipe=SPM),
    "sampling cost": sampling_cost,
    "deletions from SPM": partial(deletions, recipe=SPM, kinds=("image", "class", "tenth")),
    "training speed of SPM, bf16": partial(throughput, recipe=SPM, precision="bf16"),
    "training speed of SPM, fp32": partial(throughput, recipe=SPM, precision="no"),
    "train SPM with a public core": partial(trained, recipe=PUBLIC),
    "quality of SPM with a public core": partial(quality, recipe=PUBLIC),
    "retrain SPM without the class": partial(retrained, recipe=SPM),
    "class deletion": class_deletion,
    "train ensemble": partial(trained, recipe=ENSEMBLE),
    "quality of ensemble": partial(quality, recipe=ENSEMBLE),
    "deletions of images from ensemble": partial(deletions, recipe=ENSEMBLE, kinds=("image",)),
    "training speed of SPM, compiled": partial(throughput, recipe=SPM, precision="bf16", changes=COMPILED),
    "training speed at 38 M, bf16": partial(throughput, recipe=PAPER, precision="bf16"),
    "training speed at 38 M, fp32": partial(throughput, recipe=PAPER, precision="no"),
    "training speed at 38 M, compiled": partial(throughput, recipe=PAPER, precision="bf16", changes=COMPILED),
    "training speed of DDPM, bf16": partial(throughput, recipe=DDPM, precision="bf16"),
    "training speed of DDPM, fp32": partial(throughput, recipe=DDPM, precision="no"),
    "training speed of DDPM, compiled": partial(throughput, recipe=DDPM, precision="bf16", changes=COMPILED),
    "retrain DDPM without the class": partial(retrained, recipe=DDPM),
    "quality of DDPM without the class": partial(retrained_quality, recipe=DDPM),
    "deletion of a class from ensemble": partial(deletions, recipe=ENSEMBLE, kinds=("class",), repeats=1),
    "deletion of a tenth from ensemble": partial(deletions, recipe=ENSEMBLE, kinds=("tenth",), repeats=1),
}


def main(words: list[str] | None = None) -> None:
    """Parse the command line, and measure what is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"), help="folder for runs and parts")
    parser.add_argument("--results", type=Path, help="folder for the result; with --tiny it is --out")
    parser.add_argument("--source", help="training images, instead of the recipes'")
    parser.add_argument("--test-source", help="held-out images, instead of the recipes'")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="recipe override")
    parser.add_argument("--minutes", type=float, help="begin no stage after so many")
    parser.add_argument("--only", action="append", choices=STAGES, help="this stage alone")
    parser.add_argument("--skip", action="append", choices=STAGES, default=[], help="not this one")
    parser.add_argument("--tiny", action="store_true", help="prove that everything runs; numbers say nothing")
    arguments = parser.parse_args(words)
    given = (("source", arguments.source), ("test_source", arguments.test_source))
    places = tuple(f"data.{name}={value}" for name, value in given if value)
    world = World(arguments.out, TINY if arguments.tiny else Plan(), tuple(arguments.settings), places)
    result = arguments.results or (arguments.out if arguments.tiny else ROOT / "results")
    result /= "cifar10_generation.json"
    chosen = [name for name in arguments.only or STAGES if name not in arguments.skip]
    try:
        _require(world)
        failed = measure(world, chosen, result, arguments.minutes)
    except TrainingInterruptedError as error:
        sys.exit(f"{error}; call the same command again to go on")
    except ValueError as error:
        sys.exit(str(error))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; {result} says why; the same command tries again")


def _require(world: World) -> None:
    """Raise a ValueError about what would stop or spoil a stage later."""
    if (processes := process_state().num_processes) > 1:
        raise ValueError(f"expected one process, which is what speeds are of, got {processes}")
    if any(setting.startswith(("data.source=", "data.test_source=")) for setting in world.settings):
        raise ValueError("expected --source and --test-source to say where images lie, got --set")
    with strict_arithmetic(process_state().device):
        pass
    _ = world.split  # Every stage needs the images.


def measure(world: World, chosen: list[str], result: Path, minutes: float | None) -> dict[str, str]:
    """Go through the stages that are left, and write each part and the result.

    Args:
        world: what all stages share.
        chosen: names of stages, in order.
        result: file of the result.
        minutes: after which no stage begins.

    Returns:
        Why stages failed that are not done, by name, those of earlier calls included.

    Raises:
        ValueError: `result`, or what lies in the folder of `world`, is of something else.
    """
    started, made_from = time.monotonic(), _made_from(world)
    failed = _failed_before(world, result, made_from)
    _claim(world.out / "made_from.txt", made_from)
    result.parent.mkdir(parents=True, exist_ok=True)
    write_text(result, _result(world, made_from, failed))
    for name in chosen:
        if _part(world, name) is not None:
            continue
        if minutes is not None and time.monotonic() - started > 60 * minutes:
            left = [name for name in STAGES if _part(world, name) is None]
            sys.stdout.write(f"{minutes:g} minutes are over; left: {', '.join(left)}\n")
            break
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        failed.pop(name, None)
        begun = time.perf_counter()
        try:
            found = STAGES[name](world)
        except (ValueError, RuntimeError) as error:  # Of PyTorch, such as one about memory: others may do.
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            failed[name] = reason.replace(str(world.out), "OUT")
            outcome = f"failed: {failed[name]}"
        else:
            seconds = time.perf_counter() - begun
            path = _part_path(world, name)
            path.parent.mkdir(exist_ok=True)
            write_text(path, json.dumps({"seconds": seconds, "found": found}, indent=1) + "\n")
            outcome = f"{seconds:.1f} s"
        write_text(result, _result(world, made_from, failed))
        sys.stdout.write(f"{name}: {outcome}\n")
    return failed


def _made_from(world: World) -> str:
    """Identify all that parts may share: recipes, but for where the images lie, amounts, device, software."""
    recipes = [load_config(CONFIGS / f"{name}.yaml", world.told).to_yaml() for name in RECIPES]
    return digest_json([recipes, list(asdict(world.plan).items()), device_name(), _versions()])


def _versions() -> dict[str, str]:
    return software_versions() | {"cuda": str(torch.version.cuda)}


def _claim(path: Path, made_from: str) -> None:
    """Note what runs, samples and parts of a folder are made from; refuse one of something else."""
    if path.exists() and path.read_text(encoding="utf-8").strip() != made_from:
        raise ValueError(
            f"{path.parent} holds runs of other recipes, amounts, device or software; choose another --out"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"{made_from}\n")


def _failed_before(world: World, result: Path, made_from: str) -> dict[str, str]:
    """Return what failed in earlier calls, by the result; refuse one that would lose what it holds."""
    if not result.exists():
        return {}
    before = json.loads(result.read_text(encoding="utf-8"))
    if before.get("made_from") != made_from or any(_part(world, name) is None for name in before["found"]):
        raise ValueError(
            f"{result} is of other recipes, amounts, device, software or --out; move it away, or choose "
            "another --results"
        )
    failed: dict[str, str] = before["failed"]
    return failed


def _part_path(world: World, name: str) -> Path:
    return world.out / "parts" / f"{name.replace(',', '').replace(' ', '-')}.json"


def _part(world: World, name: str) -> dict[str, Any] | None:
    """Return the part of a stage, if it is done."""
    path = _part_path(world, name)
    if not path.exists():
        return None
    part: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return part


def _result(world: World, made_from: str, failed: dict[str, str]) -> str:
    """Put the parts that there are together."""
    parts = {name: _part(world, name) for name in STAGES}
    done = {name: part for name, part in parts.items() if part is not None}
    words = ["python", "-m", "evaluation.cifar10_generation", "--source", "TRAIN", "--test-source", "TEST"]
    words += ["--tiny"] if world.plan == TINY else []
    words += [word for setting in world.settings for word in ("--set", setting)]
    result = {
        "images": "CIFAR-10 (JPEG): compare nothing with numbers on CIFAR-10",
        "command": f"CUBLAS_WORKSPACE_CONFIG=:4096:8 {shlex.join(words)}",
        "tiny": world.plan == TINY,
        "made_from": made_from,
        "recipes": {name: world.config(name).digest for name in RECIPES},
        "plan": asdict(world.plan),
        "device": device_name(),
        "versions": _versions(),
        "seconds": {name: part["seconds"] for name, part in done.items()},
        "left": [name for name in STAGES if name not in done],
        "failed": failed,
        "found": {name: part["found"] for name, part in done.items()},
    }
    return json.dumps(result, indent=1) + "\n"


if __name__ == "__main__":
    main()
