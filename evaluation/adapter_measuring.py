"""Fit a system, delete from it in a plan's batches, and say what that cost and what was left of accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.adapter_systems import Cost, EnsembleSetting, RefitSetting, Setting, SisaSetting, System
from evaluation.encoded_images import EncodedImages
from evaluation.penalties import Choice, choose
from evaluation.timing import seconds_of
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.sgd import SgdHeads
from gen_unlearn.metrics.estimate import Estimate, proportion
from gen_unlearn.repro import id_keys, numpy_generator

NEIGHBOURS = (1, 3, 10)
"""Numbers of adapters that answer for an image."""

SEEDS = 3
"""Of keys, shards and orders."""


@dataclass(frozen=True)
class Plan:
    """What is deleted from what.

    Attributes:
        adapters: numbers of adapters.
        shards: of SISA.
        slices: of SISA.
        deletions: batches, and the images of each.
        fewer: the same number of images in fewer batches, for what is trained again by gradient descent.
        forgotten: the class that is deleted at last, by index.
    """

    adapters: tuple[int, ...]
    shards: tuple[int, ...]
    slices: tuple[int, ...]
    deletions: tuple[tuple[int, int], ...]
    fewer: tuple[tuple[int, int], ...]
    forgotten: int


Probes = dict[str, dict[int, np.ndarray]]
"""Global probe -> images that were deleted -> which test images it then classifies correctly, bool."""


def measure(
    images: EncodedImages,
    plan: Plan,
    candidates: list[tuple[Setting, float]],
    probes: Probes,
    name: str,
) -> dict[str, Any]:
    """Choose, fit, delete and compare one system.

    Args:
        images: the encoded images.
        plan: what to delete.
        candidates: what to choose from.
        probes: what the global probes did; a global probe is added.
        name: of the system.
    """
    choice = choose(candidates, images.tuning, len(images.deletable))
    built: list[System] = []
    seconds = seconds_of(lambda: built.append(choice.setting.build(images.deletable, choice.penalty, 0)))
    system, facts = built[0], built[0].facts()
    right = {0: _right(system, images.test)}
    stages = [{"deleted": 0, **_accuracies(system, right[0], images)}]
    deletions = []
    plan_of_it = _batches(plan, choice.setting)
    order = numpy_generator(0, "deletions").permutation(_sorted(images.deletable.ids))
    for batches, size in plan_of_it:
        chosen, order = order[: batches * size].reshape(batches, size, -1), order[batches * size :]
        costs = [system.delete(_sorted(ids)) for ids in chosen]
        deletions.append(_costs(size, costs))
        deleted = sum(line["images"] * line["batches"] for line in deletions)
        right[deleted] = _right(system, images.test)
        stages.append({"deleted": deleted, **_accuracies(system, right[deleted], images)})
    if name.startswith("global"):
        probes[name] = right
    for stage in stages:
        at = stage["deleted"]
        stage["to global"] = {
            probe: _difference(right[at], ones[at]) for probe, ones in probes.items() if at in ones
        }
        stage["to before"] = _difference(right[at], right[0])
    return {
        **_chosen(choice),
        "fit seconds": seconds,
        "facts": facts,
        "seeds": [float(right[0].mean()), *_other_seeds(images, choice)],
        "stages": stages,
        "deletions": deletions,
        "class deletion": _delete_class(system, plan.forgotten, images.test),
        "facts at the end": system.facts(),
        "bit_identical": _bits(system),
        "batches": sum(batches for batches, _ in plan_of_it) + 1,
    }


def _batches(plan: Plan, setting: Setting) -> tuple[tuple[int, int], ...]:
    """Return what is deleted from a system: fewer batches if it takes long, but for one of the ensembles."""
    if isinstance(setting, RefitSetting):
        return plan.deletions
    if isinstance(setting, SisaSetting):
        return plan.fewer
    one = isinstance(setting.family, SgdHeads) and not setting.family.hidden
    one &= (setting.adapters, setting.neighbours) == (plan.adapters[-1], NEIGHBOURS[1])
    return plan.deletions if one or isinstance(setting.family, RidgeHeads) else plan.fewer


def _costs(size: int, costs: list[Cost]) -> dict[str, Any]:
    """Summarise deletions of so many images each."""
    return {
        "images": size,
        "batches": len(costs),
        "median seconds": float(np.median([cost.seconds for cost in costs])),
        "median visits": float(np.median([cost.visits for cost in costs])),
        "mean visits": float(np.mean([cost.visits for cost in costs])),
    }


def _chosen(choice: Choice) -> dict[str, Any]:
    """Say what was chosen, and how the candidates did."""
    match choice.setting:
        case EnsembleSetting(family=SgdHeads() as trained) | SisaSetting(config=trained):
            rate: float | None = trained.learning_rate
        case _:
            rate = None
    return {
        "penalty": choice.penalty,
        "learning rate": rate,
        "accuracies of candidates on public images": choice.accuracies,
    }


def _other_seeds(images: EncodedImages, choice: Choice) -> list[float]:
    """Return the test accuracy with other keys, shards and orders."""
    others = (choice.setting.build(images.deletable, choice.penalty, seed) for seed in range(1, SEEDS))
    return [float(_right(system, images.test).mean()) for system in others]


def _accuracies(system: System, right: np.ndarray, images: EncodedImages) -> dict[str, Any]:
    """Return the accuracy on test images and on the training images that are left."""
    train = _right(system, system.records).mean()
    test = proportion(int(right.sum()), len(images.test))
    return {"test": test.as_dict(), "train": float(train), "train-test gap": float(train - test.value)}


def _delete_class(system: System, label: int, test: Records) -> dict[str, Any]:
    """Delete what is left of a class."""
    left = system.records
    leaving = _sorted(left.ids[left.labels == label])
    cost = system.delete(leaving)
    right, kept = _right(system, test), test.labels != label
    return {
        "images": len(leaving),
        "seconds": cost.seconds,
        "visits": cost.visits,
        "test": proportion(int(right.sum()), len(right)).as_dict(),
        "test, retained classes": proportion(int(right[kept].sum()), int(kept.sum())).as_dict(),
    }


def _bits(system: System) -> list[int]:
    """Return how many parts a fresh fit has too, to the bit, and how many there are in either."""
    parts, fresh = system.parts(), system.fresh().parts()
    names = parts.keys() | fresh.keys()
    return [sum(parts.get(name) == fresh.get(name) for name in names), len(names)]


def _right(system: System, records: Records) -> np.ndarray:
    return system.scores(records.codes).argmax(axis=1) == records.labels


def _difference(right: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return a difference of accuracies on the same images."""
    each = right.astype(float) - other
    return Estimate(float(each.mean()), float(each.std() / len(each) ** 0.5)).as_dict()


def _sorted(ids: np.ndarray) -> np.ndarray:
    return ids[np.unique(id_keys(ids), return_index=True)[1]]
