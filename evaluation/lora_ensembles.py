"""Compare ensembles of LoRA adapters with a joint LoRA, a full fine-tune, the backbone alone and the SPM.

    python -m evaluation.lora_ensembles --division images --tune --seeds 1
    python -m evaluation.lora_ensembles --division images --seeds 3
    python -m evaluation.lora_ensembles --division classes ...

All on digits, from one backbone that was trained on a public core; what is trained on the deletable images
reads each as often. Half of the images of each class are public, or no image of five classes and most of the
others; then the five are measured. Images are compared with held-out ones, deleted one by one, and in shares.
`--tune` holds out training images in the place of the test images and compares learning rates; with `--tuned`
and its result the comparison takes the best of each. Writes `lora_ensembles_DIVISION.json` to
``evaluation/results``, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from evaluation.lora_measuring import (
    Plan,
    deletions,
    floor,
    measured,
    sampling_cost,
)
from evaluation.lora_systems import (
    LoraSystem,
    PlainSystem,
    System,
    full_fine_tune,
    plain_backbone,
    semi_parametric,
    trained_on_everything,
)
from evaluation.lora_world import DIVISIONS, DivisionName, World, load_world
from gen_unlearn.adapters.determinism import environment
from gen_unlearn.adapters.lora_config import Composition, LoraConfig
from gen_unlearn.atomic import write_text
from gen_unlearn.repro import digest_json
from gen_unlearn.training.diffusion_config import TrainingConfig

ROOT = Path(__file__).parent
JOINT = "joint LoRA"
LARGEST = "ensemble, n=100, k=1"
"""What images are deleted from."""

ONCE = ("SPM with public core", "DDPM of all images")
"""What is measured with the first seed alone."""

Rates = Mapping[str, Sequence[float]]
RATES: dict[DivisionName, Rates] = {
    "images": {JOINT: (3e-4, 1e-3, 3e-3), LARGEST: (3e-4, 1e-3, 3e-3), "full fine-tune": (3e-4, 1e-3)},
    "classes": {JOINT: (1e-3, 3e-3, 1e-2), LARGEST: (1e-3, 3e-3, 1e-2), "full fine-tune": (3e-4, 1e-3)},
}
"""Learning rates to choose from."""

PARTS = 3
"""Adapters of an image in a mean or a mixture."""


@dataclass(frozen=True)
class Settings:
    """How everything is trained; learning rates are chosen with `--tune`.

    Attributes:
        epochs: how often every deletable image is read, by all adapters together.
        adapters: of the ensembles.
        joint: of the joint LoRA.
        fine_tune: of all weights; `images` comes from `epochs`.
        sizes: numbers of adapters, and adapters of each image.
        compositions: of the adapters of the ensemble that images are deleted from.
    """

    epochs: int
    adapters: LoraConfig
    joint: LoraConfig
    fine_tune: TrainingConfig
    sizes: tuple[tuple[int, int], ...] = ((100, 1),)
    compositions: tuple[Composition, ...] = ("route",)


SETTINGS: dict[DivisionName, Settings] = {
    "images": Settings(
        epochs=40,
        adapters=LoraConfig(batch_size=8, learning_rate=3e-4, stack=1),
        joint=LoraConfig(batch_size=32, learning_rate=3e-3, stack=1),
        fine_tune=TrainingConfig(batch_size=60, learning_rate=3e-4, warmup_images=1000),
    ),
    "classes": Settings(
        epochs=40,
        adapters=LoraConfig(batch_size=4, learning_rate=1e-2, stack=1),
        joint=LoraConfig(batch_size=32, learning_rate=1e-2, stack=1),
        fine_tune=TrainingConfig(batch_size=60, learning_rate=1e-3, warmup_images=1000),
        sizes=((100, 1), (10, 1)),
    ),
}

Build = Callable[[World], System]


def main() -> None:
    """Measure every generator with every seed, and write and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--division", choices=DIVISIONS, default="images", help="what the core never saw")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--tune", action="store_true", help="compare settings on held-out training images")
    parser.add_argument("--images", type=int, default=Plan.images, help="images sampled from each generator")
    parser.add_argument("--out", type=Path, default=Path("runs/lora"), help="folder for the backbones")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="backbone's recipe")
    parser.add_argument("--tuned", type=Path, help="result of --tune, to take learning rates from")
    parser.add_argument("--result", type=Path, help="file of the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plan, settings = Plan(images=arguments.images), SETTINGS[arguments.division]
    if arguments.tuned is not None:
        tuned = json.loads(arguments.tuned.read_text(encoding="utf-8"))
        settings = chosen(settings, RATES[arguments.division], tuned)
    kind = "lora_tuning" if arguments.tune else "lora_ensembles"
    path = arguments.result or ROOT / "results" / f"{kind}_{arguments.division}.json"
    result = _head(arguments, settings, plan)
    rows: list[dict[str, Any]] = []
    with threadpool_limits(1):
        for seed in range(arguments.seeds):
            world = load_world(
                arguments.division, seed, arguments.out, arguments.overrides, tuning=arguments.tune
            )
            rates = RATES[arguments.division] if arguments.tune else None
            for row in _rows(world, settings, plan, rates):
                rows.append({"seed": seed, **row})
                result |= {"summary": summary(rows), "rows": rows}
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, json.dumps(result, indent=1) + "\n")
                sys.stdout.write(f"seed {seed}  {line(row)}\n")
                sys.stdout.flush()


def systems(settings: Settings) -> Iterator[tuple[str, Build]]:
    """Yield what is compared."""

    def ensemble(adapters: int, neighbours: int) -> Build:
        config = replace(settings.adapters, epochs=settings.epochs // neighbours)
        return lambda world: LoraSystem(world, config, adapters, neighbours, seed=world.config.seed)

    def fine_tuned(world: World) -> PlainSystem:
        images = settings.epochs * len(world.parts.deletable)
        return full_fine_tune(world, replace(settings.fine_tune, images=images))

    joint = replace(settings.joint, epochs=settings.epochs)
    yield "backbone alone", plain_backbone
    yield JOINT, lambda world: LoraSystem(world, joint, 1, seed=world.config.seed)
    for adapters, neighbours in settings.sizes:
        yield f"ensemble, n={adapters}, k={neighbours}", ensemble(adapters, neighbours)
    yield "full fine-tune", fine_tuned
    yield "SPM with public core", semi_parametric
    yield "DDPM of all images", trained_on_everything


def with_rate(settings: Settings, name: str, rate: float) -> Settings:
    """Return settings with another learning rate of a generator; all ensembles share theirs."""
    match name:
        case "joint LoRA":
            return replace(settings, joint=replace(settings.joint, learning_rate=rate))
        case "full fine-tune":
            return replace(settings, fine_tune=replace(settings.fine_tune, learning_rate=rate))
        case _:
            return replace(settings, adapters=replace(settings.adapters, learning_rate=rate))


def candidates(settings: Settings, rates: Rates) -> Iterator[tuple[str, Build]]:
    """Yield what learning rates are chosen from, and the backbone."""
    yield "backbone alone", plain_backbone
    for name, own in rates.items():
        for rate in own:
            yield f"{name}, rate {rate:g}", dict(systems(with_rate(settings, name, rate)))[name]


def chosen(settings: Settings, rates: Rates, tuned: dict[str, Any]) -> Settings:
    """Return settings with the learning rates that had the smallest distances in a result of `--tune`."""
    for name, own in rates.items():
        distances = [tuned["summary"][f"{name}, rate {rate:g}"]["frechet"]["mean"] for rate in own]
        settings = with_rate(settings, name, own[distances.index(min(distances))])
    return settings


def _rows(
    world: World, settings: Settings, plan: Plan, rates: Rates | None = None
) -> Iterator[dict[str, Any]]:
    """Measure one generator after the other; the first row is that of real images.

    Args:
        world: what all share.
        settings: how they are trained.
        plan: how much is measured.
        rates: to choose from; by default the comparison with the settings as they are.
    """
    tuning = rates is not None
    yield {"name": "real images", **floor(world)}
    first = world.config.seed == 0
    for name, build in systems(settings) if rates is None else candidates(settings, rates):
        if name in ONCE and not first:
            continue
        system = build(world)
        row = {"name": name, "visits": system.cost.visits, "seconds": system.cost.seconds}
        for composition in settings.compositions if name == LARGEST and not tuning else ("route",):
            sampling = replace(world.config.sampling, composition=composition, adapters_per_image=PARTS)
            row |= measured(world, system, plan, sampling)
            if not tuning:
                row["sampling"] = sampling_cost(world, system, plan, sampling)
            yield row if composition == "route" else {**row, "name": f"{name}, {composition}"}
        if name == LARGEST and first and not tuning:
            assert isinstance(system, LoraSystem)
            row = deletions(world, system, plan)
            yield {"name": f"{name}, {row['deleted']} deleted", **row}


def _head(arguments: argparse.Namespace, settings: Settings, plan: Plan) -> dict[str, Any]:
    """Say what was run, and on what."""
    command = f"python -m evaluation.lora_ensembles --division {arguments.division}"
    core = DIVISIONS[arguments.division]
    recipe = {"settings": asdict(settings), "plan": asdict(plan), "core": asdict(core)}
    return {
        "command": f"{command} --seeds {arguments.seeds} --images {plan.images}"
        f"{' --tune' if arguments.tune else ''}",
        "recipe": digest_json([recipe, arguments.overrides]),
        **recipe,
        "environment": environment() | {"machine": platform.machine(), "threads": "1"},
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over seeds with standard errors, also of ratios to the joint LoRA of the same seed."""
    found: dict[str, Any] = {}
    joint = {row["seed"]: row for row in rows if row["name"] == JOINT}
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        entry = {key: _mean([row[key] for row in own]) for key in ("frechet", "frechet_corrected", "nearest")}
        entry["recognised"] = _mean([row["recognised"]["value"] for row in own])
        entry["near"] = _mean([row["near"]["value"] for row in own])
        paired = [row for row in own if row["seed"] in joint]
        if paired:
            ratios = [row["frechet"] / joint[row["seed"]]["frechet"] for row in paired]
            entry["frechet_to_joint"] = _mean(ratios)
        for part, keys in _COSTS.items():
            values = [row[part] for row in own if part in row]
            known = (key for key in keys if values and all(key in value for value in values))
            entry |= {f"{part}, {key}": _mean([value[key] for value in values]) for key in known}
        found[name] = entry
    return found


_COSTS = {
    "sampling": ("ratio", "evaluations_per_step"),
    "deletion": ("share_of_visits", "share_of_seconds", "median_visits", "median_seconds"),
}


def _mean(values: list[float]) -> dict[str, float | None]:
    """Return the mean, and its standard error if there are several values."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": mean(values), "standard_error": error}


def line(row: dict[str, Any]) -> str:
    """Return one line of the table."""
    text = (
        f"{row['name']:<34} distance {row['frechet']:.3f} ± {row['frechet_error'] or 0:.3f} "
        f"(corrected {row['frechet_corrected']:.3f})  recognised {100 * row['recognised']['value']:.1f} %  "
        f"nearest {row['nearest']:.2f} (real {row['nearest_of_held_out']:.2f})  "
        f"near {100 * row['near']['value']:.1f} %"
    )
    if "visits" in row:
        text += f"  {row['visits']:,} visits, {row['seconds']:.0f} s"
    if "sampling" in row:
        cost = row["sampling"]
        text += f"  sampling {cost['ratio']:.2f}x"
    if "deletion" in row:
        cost = row["deletion"]
        shares = [f"{100 * cost[f'share_of_{part}']:.2f} %" for part in ("visits", "seconds")]
        text += f"  deletion {shares[0]} of visits, {shares[1]} of seconds"
    return text


if __name__ == "__main__":
    main()
