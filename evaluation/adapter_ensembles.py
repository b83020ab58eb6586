"""Compare adapter ensembles with SISA, linear probes and retraining, before and after many deletions.

    python -m evaluation.adapter_ensembles --data digits
    python -m evaluation.adapter_ensembles --data cifar10 --source TRAIN --test-source TEST

All classify the same frozen features, see `evaluation.encoded_images`, on one core. Penalties and learning
rates are chosen with public images. Images are then deleted at random, one by one and in batches, and then a
class; at the end every adapter or head is compared, by its bytes, with one that was fit to what is left. What
is left out: S3T, which takes layers of a network away, of which a linear layer has one. Writes
``evaluation/results/adapter_ensembles_DATA.json`` and prints a table.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from evaluation.adapter_measuring import NEIGHBOURS, SEEDS, Plan, Probes, measure
from evaluation.adapter_systems import EnsembleSetting, RefitSetting, Setting, SisaSetting
from evaluation.encoded_images import DataName, EncodedImages, encoder_recipe, load_encoded
from evaluation.sisa import SisaConfig
from gen_unlearn.adapters.determinism import environment
from gen_unlearn.adapters.family import AdapterFamily
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.sgd import SgdHeads
from gen_unlearn.atomic import write_text
from gen_unlearn.repro import digest_json

ROOT = Path(__file__).parent
RIDGE_PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
WEIGHT_DECAYS = (1e-3, 1e-2, 1e-1)
ADAPTER_RATES = (2e-3, 1e-2)
SISA_PENALTIES = (1.0, 10.0, 100.0, 1000.0)
SISA_RATES = (5e-3, 2e-2)
EPOCHS = 10
HIDDEN = 32
NOISE = 0.1
"""Standard deviations of a feature that the published keys are moved by; the publication says "slight"."""

PLANS: dict[DataName, Plan] = {
    "digits": Plan(
        adapters=(30, 100, 300),
        shards=(3, 10),
        slices=(1, 5),
        deletions=((100, 1), (100, 2)),
        fewer=((100, 1), (100, 2)),
        forgotten=3,
    ),
    "cifar10": Plan(
        adapters=(100, 300, 1000),
        shards=(10, 100),
        slices=(1, 10),
        deletions=((100, 1), (90, 10), (90, 100)),
        fewer=((20, 1), (8, 10), (9, 100), (9, 1000)),
        forgotten=3,
    ),
}


def main() -> None:
    """Measure every system, and write and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=PLANS, default="digits")
    parser.add_argument("--source", help="training images, instead of the recipe's")
    parser.add_argument("--test-source", help="test images, instead of the recipe's")
    parser.add_argument("--result", type=Path, help="file of the result")
    arguments = parser.parse_args()
    images = load_encoded(encoder_recipe(arguments.data, arguments.source, arguments.test_source))
    path = arguments.result or ROOT / "results" / f"adapter_ensembles_{arguments.data}.json"
    plan = PLANS[arguments.data]
    settings = [RIDGE_PENALTIES, WEIGHT_DECAYS, ADAPTER_RATES, SISA_PENALTIES, SISA_RATES, EPOCHS, HIDDEN]
    recipe = {"plan": asdict(plan), "settings": [*settings, NOISE, SEEDS], "images": images.about["recipe"]}
    result: dict[str, Any] = {
        "command": f"python -m evaluation.adapter_ensembles --data {arguments.data}",
        "recipe": digest_json(recipe),
        "images": images.about,
        "environment": environment() | {"machine": platform.machine(), "threads": "1"},
        "records": {part: len(getattr(images, part)) for part in ("public", "tuning", "deletable", "test")},
    }
    torch.set_num_threads(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    probes: Probes = {}
    result["systems"] = []
    with threadpool_limits(1):
        for name, candidates in systems(images, plan):
            found = measure(images, plan, candidates, probes, name)
            result["systems"].append({"name": name, **found})
            write_text(path, json.dumps(result, indent=2) + "\n")
            sys.stdout.write(row(name, found) + "\n")
            sys.stdout.flush()


def systems(images: EncodedImages, plan: Plan) -> Iterator[tuple[str, list[tuple[Setting, float]]]]:
    """Yield what is compared, with the candidates to choose from; global probes come first."""
    classes = len(images.class_names)

    def ensemble(family: AdapterFamily, adapters: int, neighbours: int, noise: float | None = None) -> Any:
        setting = EnsembleSetting(images, family, adapters, neighbours, noise)
        if isinstance(family, RidgeHeads):
            return [(setting, penalty) for penalty in RIDGE_PENALTIES]
        assert isinstance(family, SgdHeads)
        families = [replace(family, learning_rate=rate) for rate in ADAPTER_RATES]
        return [(replace(setting, family=one), decay) for one, decay in product(families, WEIGHT_DECAYS)]

    def sisa(shards: int, slices: int) -> list[tuple[Setting, float]]:
        configs = [SisaConfig(shards, slices, EPOCHS, learning_rate=rate) for rate in SISA_RATES]
        return [(SisaSetting(one, classes), penalty) for one, penalty in product(configs, SISA_PENALTIES)]

    linear, most = SgdHeads(epochs=EPOCHS), plan.adapters[-1]
    yield "global ridge, subtracted", ensemble(RidgeHeads(), 1, 1)
    yield "global SGD, retrained", sisa(1, 1)
    yield "global ridge, fit again", [(RefitSetting(classes), penalty) for penalty in RIDGE_PENALTIES]
    for adapters, neighbours in product(plan.adapters, NEIGHBOURS):
        yield f"ridge, n={adapters}, k={neighbours}", ensemble(RidgeHeads(), adapters, neighbours)
    yield f"ridge, n={most}, k=10, published keys", ensemble(RidgeHeads(), most, 10, NOISE)
    for shards, slices in product(plan.shards, plan.slices):
        yield f"SISA, s={shards}, R={slices}", sisa(shards, slices)
    for adapters, neighbours in product(plan.adapters, NEIGHBOURS):
        yield f"SGD, n={adapters}, k={neighbours}", ensemble(linear, adapters, neighbours)
    for adapters, neighbours in ((plan.adapters[0], 1), (most, 10)):
        perceptron = replace(linear, hidden=HIDDEN)
        yield f"MLP, n={adapters}, k={neighbours}", ensemble(perceptron, adapters, neighbours)


def row(name: str, found: dict[str, Any]) -> str:
    """Return one line of the table: accuracies, and what a deletion costs."""
    stages = [stage for stage in found["stages"] if stage["deleted"] != 20]
    tests = " ".join(f"{100 * stage['test']['value']:6.2f}" for stage in stages)
    first, single, hundred = stages[0], found["deletions"][0], found["deletions"][-1]
    for line in found["deletions"]:
        hundred = line if line["images"] == 100 else hundred
    equal, total = found["bit_identical"]
    return (
        f"{name:<36} {tests} ±{100 * first['test']['standard_error']:.2f}"
        f"  gap {100 * first['train-test gap']:5.2f}"
        f"  class {100 * found['class deletion']['test']['value']:6.2f}"
        f"  1: {1000 * single['median seconds']:8.2f} ms {single['median visits']:>9,.0f} visits"
        f"  {hundred['images']}: {1000 * hundred['median seconds']:7.1f} ms {hundred['median visits']:>9,.0f}"
        f"  parameters {found['facts']['parameters']:>10,.0f}  bits {equal}/{total}"
    )


if __name__ == "__main__":
    main()
