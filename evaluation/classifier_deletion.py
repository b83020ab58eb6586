"""Compare the semi-parametric classifier with its parametric reference, before and after a class is deleted.

    python -m evaluation.classifier_deletion --data digits --seeds 8 --delete 3 --delete 0.1
    python -m evaluation.classifier_deletion --data cifar10 --delete cat --source TRAIN --test-source TEST

For every training seed it trains the semi-parametric classifier and the parametric network of the same
encoder, both on all images and, with other seeds, without one class. The class is then deleted from the
exemplars. Fine-tuning and gradient ascent, with published settings that were not tuned here, are timed beside
it on the parametric network. Predictions are compared with those of the retrained models of either kind. Runs
that are complete are found again, so an interrupted measurement continues. Writes
``evaluation/results/classifier_deletion_DATA.json``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gen_unlearn.atomic import write_text
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.commands.train import train
from gen_unlearn.config import load_recipe
from gen_unlearn.data import IndexedImages, Split, split_by_ids
from gen_unlearn.forget import ForgetSet
from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.prediction_gap import compare_with_retrained
from gen_unlearn.models.classifier import ParametricClassifier
from gen_unlearn.pipelines.classification import (
    ParametricPipeline,
    PredictionConfig,
    SemiParametricPipeline,
    Vote,
)
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import numpy_generator, software_versions
from gen_unlearn.runs import RunFolder

ROOT = Path(__file__).parent
RECIPES = {"digits": "digits_spm_classifier.yaml", "cifar10": "cifar10_small_spm_classifier.yaml"}
VOTES: dict[str, Vote] = {"SPM-C": "prototypes", "SPM-R": "exemplars", "k-NN": "nearest-neighbours"}
RETAINED_IMAGES = 5000
ORACLE_SEEDS = 100
"""Retrained models have seeds from here on, so that they share no initial weights with the others."""

Probabilities = dict[str, np.ndarray]
"""Set of images -> probabilities, float64 ``(n, classes)``."""


def main() -> None:
    """Parse the command line, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=RECIPES, default="digits")
    parser.add_argument("--source", help="training images, instead of the recipe's")
    parser.add_argument("--test-source", help="test images, instead of the recipe's")
    parser.add_argument("--out", type=Path, default=Path("runs/classifiers"), help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3)
    help_delete = "class to delete, or a share at random such as 0.1. Repeatable; the fourth class by default"
    parser.add_argument("--delete", action="append", help=help_delete)
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="recipe override")
    parser.add_argument("--result", type=Path, help="file of the result")
    arguments = parser.parse_args()
    overrides = [*arguments.overrides]
    for name, value in (("source", arguments.source), ("test_source", arguments.test_source)):
        overrides += [f"data.{name}={value}"] if value else []
    config = load_recipe(ROOT.parent / "configs" / RECIPES[arguments.data], overrides)
    assert isinstance(config, ClassifierRunConfig)
    requests = arguments.delete or ["3"]
    result = {
        "command": _command(arguments.data, arguments.seeds, requests, arguments.overrides),
        "recipe": config.digest,
        "versions": software_versions(),
        "training seeds": arguments.seeds,
        "deletions": measure(config, arguments.out / arguments.data, range(arguments.seeds), requests),
    }
    path = arguments.result or ROOT / "results" / f"classifier_deletion_{arguments.data}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result, indent=2) + "\n")


def _command(data: str, seeds: int, requests: Sequence[str], overrides: Sequence[str]) -> str:
    """Return the command that measures this, apart from where the images and the runs lie."""
    words = ["python", "-m", "evaluation.classifier_deletion", "--data", data, "--seeds", str(seeds)]
    words += [word for request in requests for word in ("--delete", request)]
    return shlex.join([*words, *(word for override in overrides for word in ("--set", override))])


def measure(
    config: ClassifierRunConfig, out: Path, seeds: Sequence[int], requests: Sequence[str]
) -> dict[str, Any]:
    """Train, delete, unlearn and compare; return everything that was found, by what was deleted."""
    kinds = {"voting": config}
    if config.core.mode == "joint":
        kinds["parametric"] = replace(config, model=replace(config.model, kind="parametric"))
    found: dict[str, Any] = {}
    for request in requests:
        runs = {
            kind: [_trained(recipe, out / f"{kind}-{seed}", seed) for seed in seeds]
            for kind, recipe in kinds.items()
        }
        one = runs["voting"][0]
        split = one.load_split()
        split = Split(one.split_core(split.train).deletable, split.test)
        forget = _forget_set(split.train, request)
        retrained = {
            kind: [
                _trained(recipe, out / f"{kind}-{request}-{ORACLE_SEEDS + seed}", ORACLE_SEEDS + seed, forget)
                for seed in seeds
            ]
            for kind, recipe in kinds.items()
        }
        found[request] = _compare(runs, retrained, split, forget)
    return found


def _forget_set(train_images: IndexedImages, request: str) -> ForgetSet:
    """Return what to delete: a share at random, such as 0.1, or a class."""
    if "." in request:
        return ForgetSet.from_fraction(train_images, float(request), seed=0)
    return ForgetSet.from_classes(train_images, [request], "class")


def _compare(
    runs: Mapping[str, Sequence[RunFolder]],
    retrained: Mapping[str, Sequence[RunFolder]],
    split: Split,
    forget: ForgetSet,
) -> dict[str, Any]:
    """Compare all models before and after a deletion with the retrained ones.

    Runs are given by kind, ``voting`` and ``parametric``; a public core has no parametric ones, as their
    weights would see every image. The training part of `split` is what can be deleted.
    """
    sets = _sets(split, forget)
    parametric = runs.get("parametric", [])
    unlearned = {
        name: [_unlearn(run, split.train, forget, method) for run in parametric]
        for name, method in (("fine-tuning", _fine_tune), ("gradient ascent", _ascend))
        if parametric
    }
    before, oracle = _predictions(runs, sets), _predictions(retrained, sets)
    after = {
        name: [_predict(run, vote, sets, forget) for run in runs["voting"]] for name, vote in VOTES.items()
    }
    after |= {name: [_at(sets, network) for network, _ in done] for name, done in unlearned.items()}
    labels = {name: images.labels for name, images in sets.items()}
    found = {
        "images": {name: len(images) for name, images in sets.items()},
        "accuracy before": _accuracies(before, labels),
        "accuracy after": _accuracies(after, labels),
        "accuracy of retrained models": _accuracies(oracle, labels),
        "gaps before": {name: _gaps(models, oracle[name]) for name, models in before.items()},
        "gaps after": {
            name: _gaps(models, oracle[name if name in VOTES else "parametric"])
            for name, models in after.items()
        },
    }
    if parametric:
        found["gaps after, to parametric"] = {
            name: _gaps(after[name], oracle["parametric"]) for name in VOTES
        }
    seconds = {
        "deletion": _spread([_deletion_seconds(run, forget) for run in runs["voting"]]),
        **{
            f"retraining, {kind}": _spread(list(map(_training_seconds, of))) for kind, of in retrained.items()
        },
        **{name: _spread([seconds for _, seconds in done]) for name, done in unlearned.items()},
    }
    return found | {"seconds": seconds}


def _predictions(
    runs: Mapping[str, Sequence[RunFolder]], sets: Mapping[str, IndexedImages]
) -> dict[str, list[Probabilities]]:
    """Return the predictions of runs, by vote and of the parametric ones."""
    found = {name: [_predict(run, vote, sets) for run in runs["voting"]] for name, vote in VOTES.items()}
    if "parametric" in runs:
        found["parametric"] = [_predict(run, None, sets) for run in runs["parametric"]]
    return found


def _trained(
    config: ClassifierRunConfig, path: Path, seed: int, without: ForgetSet | None = None
) -> RunFolder:
    """Return a trained run; one that is there and complete is taken as it is."""
    found = RunFolder(path)
    if found.manifest_path.exists() and found.manifest.training is not None:
        return RunFolder.open(path)
    return train(replace(config, seed=seed), path, without, description=path.name)


def _sets(split: Split, forget: ForgetSet) -> dict[str, IndexedImages]:
    """Return the images that predictions are compared on; sets without images are left out."""
    deleted = forget.mask(split.train.ids)
    kept = np.flatnonzero(~deleted)
    chosen = numpy_generator(0, "retained").choice(kept, min(len(kept), RETAINED_IMAGES), replace=False)
    of_retained = np.isin(split.test.labels, split.train.labels[kept])
    sets = {
        "forget": split.train.select(np.flatnonzero(deleted)),
        "retain": split.train.select(chosen),
        "held out": split.test,
        "held out, retained classes": split.test.select(of_retained),
        "held out, deleted class": split.test.select(~of_retained),
    }
    return {name: images for name, images in sets.items() if len(images)}


def _predict(
    run: RunFolder, vote: Vote | None, sets: Mapping[str, IndexedImages], forget: ForgetSet | None = None
) -> Probabilities:
    """Return the predictions of a run, after the deletion of `forget` from its exemplars."""
    pipeline = run.load_classifier()
    if isinstance(pipeline, SemiParametricPipeline):
        assert vote is not None
        pipeline.prediction = PredictionConfig(vote)
        if forget is not None:
            pipeline.delete(forget)
    return {name: pipeline.probabilities(images.images) for name, images in sets.items()}


def _deletion_seconds(run: RunFolder, forget: ForgetSet) -> float:
    """Return the seconds of a deletion from exemplars that serve."""
    pipeline = run.load_classifier()
    assert isinstance(pipeline, SemiParametricPipeline)
    started = time.perf_counter()
    pipeline.delete(forget)
    return time.perf_counter() - started


def _training_seconds(run: RunFolder) -> float:
    assert run.manifest.training is not None
    return run.manifest.training.seconds


Method = Callable[[ParametricClassifier, Split], None]
"""Changes a network; the split has what is retained as training, and what is to be forgotten as test data."""


def _unlearn(
    run: RunFolder, train_images: IndexedImages, forget: ForgetSet, method: Method
) -> tuple[ParametricClassifier, float]:
    """Return a network that an approximate method has changed, and the seconds that took."""
    pipeline = run.load_classifier()
    assert isinstance(pipeline, ParametricPipeline)
    data = split_by_ids(train_images, forget.ids)
    started = time.perf_counter()
    method(pipeline.network, data)
    return pipeline.network.eval(), time.perf_counter() - started


def _fine_tune(network: ParametricClassifier, data: Split) -> None:
    """Train on for one pass over what is retained, at a learning rate of 0.01."""
    _descend(network.train(), data.train, 0.01, 1.0)


def _ascend(network: ParametricClassifier, data: Split) -> None:
    """Ascend the loss of what is to be forgotten for five passes at 1e-4, with fixed batch statistics.

    Gradients are clipped, or the loss of photographs runs away to infinity.
    """
    for _ in range(5):
        _descend(network.eval(), data.test, 1e-4, -1.0)


def _descend(network: ParametricClassifier, data: IndexedImages, rate: float, sign: float) -> None:
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9)
    order = numpy_generator(0, "unlearn").permutation(len(data))
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        logits = network(to_model_input(data.images[rows]))
        loss = sign * F.cross_entropy(logits, torch.from_numpy(data.labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()


def _at(sets: Mapping[str, IndexedImages], network: ParametricClassifier) -> Probabilities:
    pipeline = ParametricPipeline(network, PredictionConfig())
    return {name: pipeline.probabilities(images.images) for name, images in sets.items()}


def _accuracies(
    models: Mapping[str, Sequence[Probabilities]], labels: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the share of images of each set that each kind of model gets right."""

    def right(found: Probabilities, of: str) -> float:
        return float((found[of].argmax(axis=1) == labels[of]).mean())

    return {
        name: {of: _spread([right(found, of) for found in several]) for of in labels}
        for name, several in models.items()
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Return values with their mean and its standard error."""
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "standard_error": error, "values": [float(v) for v in values]}


def _gaps(models: Sequence[Probabilities], oracles: Sequence[Probabilities]) -> dict[str, Any]:
    """Return, by set and distance, how far models lie from retrained ones, and these from each other."""
    found: dict[str, Any] = {}
    for of in models[0]:
        found[of] = {}
        for distance in ("disagreement", "kl", "js"):
            gap = compare_with_retrained([m[of] for m in models], [o[of] for o in oracles], distance)
            parts = {"to_retrained": gap.to_retrained, "floor": gap.floor, "energy": gap.energy}
            found[of][distance] = {name: _plain(part) for name, part in parts.items()}
    return found


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)


if __name__ == "__main__":
    main()
