"""Judge the images of a generator, what it costs to sample and to train, and what a deletion costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluation.lora_systems import Cost, LoraSystem, System
from evaluation.lora_world import World
from evaluation.timing import seconds_of
from gen_unlearn.adapters.routing import route
from gen_unlearn.judging.distances import measure_frechet
from gen_unlearn.metrics.copying import nearest_images
from gen_unlearn.metrics.data_copying import authenticity
from gen_unlearn.metrics.estimate import proportion
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.pipelines.sampling import GeneratorPipeline, sample_images
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.repro import id_keys, numpy_generator

NEAR = 0.05
"""An image is near the training images if so small a share of held-out images lies as near."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        images: that are sampled of all classes together.
        single: images that are deleted one by one.
        share: of the deletable images, deleted at random.
        timed: images of a batch that is timed.
        repeats: of each timing.
    """

    images: int = 1000
    single: int = 20
    share: float = 0.01
    timed: int = 100
    repeats: int = 5


def judged(world: World, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compare images with held-out ones, and with the deletable ones that a generator may have copied.

    Args:
        world: who judges.
        images: uint8 ``(n, height, width, channels)``.
        labels: classes that were asked for, int64 ``(n,)``.
    """
    held_out, known = world.held_out.all_images(), world.measured.all_images()
    features = world.measurer.features
    generated = replace(features("generated", images), strata=labels)
    reference, training = features("held-out", held_out), features("deletable", known)
    found = measure_frechet(generated, reference, ComparisonConfig())
    right = proportion(int((world.judge.recognise(images) == labels).sum()), len(labels))
    distances, real = nearest_images(images, known)[0].ravel(), nearest_images(held_out, known)[0].ravel()
    near = proportion(int((distances < np.quantile(real, NEAR)).sum()), len(images))
    originals = authenticity(train=training.array(), generated=generated.array())
    of_real = authenticity(train=training.array(), generated=reference.array())
    return {
        "images": len(images),
        "frechet": found.value,
        "frechet_error": found.standard_error,
        "frechet_corrected": found.jackknife_corrected,
        "recognised": right.as_dict(),
        "nearest": float(np.median(distances)),
        "nearest_of_held_out": float(np.median(real)),
        "near": near.as_dict(),
        "near_of_held_out": NEAR,
        "authentic": originals.as_dict(),
        "authentic_of_held_out": of_real.as_dict(),
    }


def measured(world: World, system: System, plan: Plan, sampling: SamplingConfig) -> dict[str, Any]:
    """Sample from a generator, and judge the images.

    The floor that real images give has as many images as there are deletable ones; the same number of the
    sampled ones is judged too.
    """
    per_class = plan.images // len(world.classes)
    labels, indices = world.labels_and_indices(per_class)
    images = np.empty(0)

    def sample() -> None:
        nonlocal images
        images = system.draw(labels, indices, sampling)

    seconds = seconds_of(sample)
    asked = np.array(labels)
    row = {**judged(world, images, asked), "sampling_seconds": seconds}
    few = np.array(indices) < floor_images(world)
    row["as_many_as_floor"] = judged(world, images[few], asked[few])
    if isinstance(system, LoraSystem) and sampling.composition == "route":
        chosen = system.choices(labels, indices, sampling)
        row["adapters"] = _by_adapter(system, images, chosen)
    return row


def floor_images(world: World) -> int:
    """Return how many deletable images every measured class has."""
    return int(np.bincount(world.measured.labels)[list(world.classes)].min())


def floor(world: World) -> dict[str, Any]:
    """Judge deletable images in the place of sampled ones, the same number of each class."""
    labels, count = world.measured.labels, floor_images(world)
    rows = np.concatenate([np.flatnonzero(labels == label)[:count] for label in world.classes])
    chosen = world.measured.select(rows)
    return judged(world, chosen.all_images(), chosen.labels)


def _by_adapter(system: LoraSystem, images: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    """Say how near the images of an adapter lie to its own members, over the adapters: medians.

    Held-out images are routed for comparison: those with the key of an adapter to its members.
    """
    ensemble = system.ensemble
    sizes = np.array([len(rows) for rows in ensemble.members.values() if len(rows)])
    near, medians = [], []
    records = system.routed.held_out
    routes = route(records.codes, ensemble.recipe.keys, 1)[:, 0]
    held_out = _to_own_members(system, records.pixels, routes)
    threshold = np.quantile(held_out, NEAR)
    distances = _to_own_members(system, images, chosen)
    for adapter in np.unique(chosen):
        own = distances[chosen == adapter]
        near.append((own < threshold).mean())
        medians.append(np.median(own))
    return {
        "with_members": len(sizes),
        "median_members": float(np.median(sizes)),
        "most_members": int(sizes.max()),
        "imbalance": float(len(ensemble.members) * (sizes**2.0).sum() / sizes.sum() ** 2),
        "near_own_members": float(np.median(near)),
        "nearest_own_member": float(np.median(medians)),
        "nearest_own_member_of_held_out": float(np.median(held_out)),
    }


def _to_own_members(system: LoraSystem, images: np.ndarray | None, adapters: np.ndarray) -> np.ndarray:
    """Return the distance of each image to the nearest member of its adapter, infinite without members."""
    pixels = system.ensemble.records.pixels
    assert images is not None
    assert pixels is not None
    found = np.full(len(images), np.inf)
    for adapter in np.unique(adapters):
        members, rows = system.ensemble.members[int(adapter)], np.flatnonzero(adapters == adapter)
        if len(members):
            found[rows] = nearest_images(images[rows], pixels[members])[0].ravel()
    return found


def sampling_cost(world: World, system: System, plan: Plan, sampling: SamplingConfig) -> dict[str, float]:
    """Time a batch beside the same batch of the plain backbone.

    Returns:
        Median seconds per image of both, their ratio, and evaluations of the network per image and step: 2
        with guidance, which runs with and without the class; not of the SPM, which is evaluated in parts.
    """
    labels, indices = world.labels_and_indices(plan.timed // len(world.classes))
    sampling = replace(sampling, batch_size=len(labels))
    own, plain, rows = [], [], []
    pipeline = system.pipeline

    def draw(one: GeneratorPipeline) -> float:
        return seconds_of(lambda: sample_images(one, labels, indices, sampling))

    counter = pipeline.unet.register_forward_pre_hook(
        lambda _, positional, named: rows.append(len(positional[0] if positional else named["sample"])),
        with_kwargs=True,
    )
    draw(pipeline)
    counter.remove()
    draw(world.backbone)
    for _ in range(plan.repeats):
        plain.append(draw(world.backbone))
        own.append(draw(pipeline))
    evaluations = sum(rows) / len(labels) / sampling.num_inference_steps
    counted = {"evaluations_per_step": evaluations} if rows else {}
    return counted | {
        "seconds_per_image": float(np.median(own)) / len(labels),
        "seconds_per_image_of_backbone": float(np.median(plain)) / len(labels),
        "ratio": float(np.median(np.array(own) / np.array(plain))),
    }


def deletions(world: World, system: LoraSystem, plan: Plan) -> dict[str, Any]:
    """Delete a share of the images at once, judge what is left, and delete more one by one.

    Returns:
        The judgement, with what a deletion of one image costs, also as a share of the visits and the seconds
        of the whole training, in the same run.
    """
    order = numpy_generator(0, "deletions").permutation(_distinct(system.ensemble.ids))
    few = max(1, round(plan.share * len(order)))
    row = _delete_share(world, system, plan, order[:few], few)
    single = order[few : few + plan.single]
    row["deletion"] = _cost_of_one([system.delete(ids[None]) for ids in single], system.cost)
    return row


def _delete_share(
    world: World, system: LoraSystem, plan: Plan, ids: np.ndarray, deleted: int
) -> dict[str, Any]:
    """Delete images at once; `deleted` is how many are then gone."""
    cost = system.delete(_distinct(ids))
    return {
        "deleted": deleted,
        "at_once": len(ids),
        "visits": cost.visits,
        "seconds": cost.seconds,
        **measured(world, system, plan, world.config.sampling),
    }


def _cost_of_one(costs: list[Cost], whole: Cost) -> dict[str, float]:
    visits, seconds = (np.array([cost[part] for cost in costs], dtype=np.float64) for part in (0, 1))
    return {
        "deletions": len(costs),
        "median_visits": float(np.median(visits)),
        "median_seconds": float(np.median(seconds)),
        "visits_of_training": whole.visits,
        "seconds_of_training": whole.seconds,
        "share_of_visits": float(np.median(visits)) / whole.visits,
        "share_of_seconds": float(np.median(seconds)) / whole.seconds,
        "mean_share_of_visits": float(visits.mean()) / whole.visits,
        "mean_share_of_seconds": float(seconds.mean()) / whole.seconds,
        "greatest_share_of_seconds": float(seconds.max()) / whole.seconds,
    }


def _distinct(ids: np.ndarray) -> np.ndarray:
    return ids[np.unique(id_keys(ids), return_index=True)[1]]
