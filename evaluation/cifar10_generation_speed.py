"""What the generators on CIFAR-10 (JPEG) cost: to sample from, to delete from, to train."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from evaluation.cifar10_generation_quality import copied
from evaluation.cifar10_generation_world import DDPM, SPM, World, arithmetic
from evaluation.timing import seconds_of, synchronise
from gen_unlearn.bank import ExemplarBank
from gen_unlearn.commands.fit import fresh_training
from gen_unlearn.commands.forget import forget
from gen_unlearn.core import CoreSplit
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.metrics.cost import median_ratio
from gen_unlearn.pipelines.sampling import GeneratorPipeline, sample_images
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.processes import process_state
from gen_unlearn.repro import keyed_order
from gen_unlearn.runs import RunFolder

Found = dict[str, Any]
Kind = Literal["image", "class", "tenth"]
Precision = Literal["no", "bf16"]


def sampling_cost(world: World) -> Found:
    """Time sampling from the semi-parametric model in turn with the plain one.

    As many images of every class are sampled in one batch; images of a class share draws of exemplars as the
    recipe says. The bank is encoded once, before.
    """
    run, plan = world.run(SPM), world.plan
    spm, plain = run.load_pipeline(), world.run(DDPM).load_pipeline()
    assert isinstance(spm, SemiParametricDDPMPipeline)
    store = spm.exemplars
    assert store is not None, "a run is saved with its exemplars"
    full = int(np.bincount(store.labels).max())
    _ = ExemplarBank.build(store, spm.unet)  # What the device does once, it does now.
    bank = seconds_of(lambda: ExemplarBank.build(store, spm.unet))
    sampling = replace(run.config.sampling, batch_size=plan.timed_images)
    rows = []
    for count in (*plan.exemplars, full):
        config = replace(sampling, exemplars_per_class=count)
        pairs, memory = _timed_pairs(world, spm, plain, config)
        ratio = median_ratio(pairs)
        first, second = (float(np.median(column)) for column in zip(*pairs, strict=True))
        rows.append(
            {
                "exemplars_per_class": count,
                "full_bank": count == full,
                "images_per_draw": config.images_per_draw,
                "batch_size": config.batch_size,
                **arithmetic("no"),
                "ratio_to_ddpm": ratio.as_dict(),
                "spm_seconds_per_image": first / plan.timed_images,
                "ddpm_seconds_per_image": second / plan.timed_images,
                "peak_bytes_of_process": memory,
            }
        )
    return {
        "images": plan.timed_images,
        "steps": sampling.num_inference_steps,
        "guidance": sampling.guidance_scale,
        "repeats": plan.sampling_repeats,
        "seconds_to_encode_the_bank": bank,
        "bank_images": len(store),
        "rows": rows,
    }


def _timed_pairs(
    world: World, spm: GeneratorPipeline, plain: GeneratorPipeline, config: SamplingConfig
) -> tuple[list[tuple[float, float]], int | None]:
    """Return the seconds of both in turn, and the most memory of the device during the first."""
    count, classes = world.plan.timed_images, len(world.split.train.class_names)
    labels, indices = [row % classes for row in range(count)], [row // classes for row in range(count)]

    def seconds(pipeline: GeneratorPipeline) -> float:
        return seconds_of(lambda: sample_images(pipeline, labels, indices, config, description="timing"))

    with _peak_memory() as memory:
        seconds(spm)
    seconds(plain)
    return [(seconds(spm), seconds(plain)) for _ in range(world.plan.sampling_repeats)], memory[0]


def deletions(world: World, recipe: str, kinds: Sequence[Kind], repeats: int | None = None) -> Found:
    """Time `gen-unlearn forget` on disk without its start; each deletion takes other images of one copy.

    Adapters are trained again in full float32, without TF32.

    Args:
        world: what all stages share.
        recipe: what is deleted from.
        kinds: what is deleted.
        repeats: deletions of each kind; `None` for those of the plan.
    """
    found: Found = {}
    count = world.plan.deletion_repeats if repeats is None else repeats
    run = world.run(recipe)
    for kind in kinds:
        copy = copied(run, world.out / f"{recipe}-{kind}.deleted-from")
        rows = []
        for ids in _requests(copy, kind)[:count]:
            before = len(copy.exemplar_folder().labels)
            started = time.perf_counter()
            receipt, _ = forget(copy, ForgetSet(ids, f"timing: {kind}"))
            seconds = time.perf_counter() - started
            rows.append(
                {"of": before, "removed": receipt.removed, "seconds": seconds, "level": receipt.level}
            )
        found[kind] = {
            "median_seconds": float(np.median([row["seconds"] for row in rows])),
            "deletions": rows,
        }
        shutil.rmtree(copy.path)
    return found


def _requests(run: RunFolder, kind: Kind) -> list[np.ndarray]:
    """Return the ids of deletions one after the other: single images, classes, or tenths of all images."""
    folder = run.exemplar_folder()
    if kind == "class":
        return [unique_ids(folder.ids[folder.labels == label]) for label in np.unique(folder.labels)]
    ids = unique_ids(folder.ids)
    ids = ids[keyed_order(ids, "timing")]
    parts = np.array_split(ids, 10 if kind == "tenth" else len(ids))
    return [unique_ids(part) for part in parts]


def throughput(world: World, recipe: str, precision: Precision, changes: Sequence[str] = ()) -> Found:
    """Time training steps of a recipe, all that belongs to them included, after some that do not count."""
    plan, config = world.plan, world.config(recipe, changes)
    size, steps = config.training.batch_size, plan.warm_steps + plan.timed_steps
    training = replace(
        config.training, images=steps * size, warmup_images=size, mixed_precision=precision, log_with=None
    )
    config = replace(config, training=training)
    train = world.split.train
    fresh = fresh_training(config, CoreSplit(train, train), None)
    with _peak_memory() as memory, _stamped(plan.warm_steps, steps) as stamps:
        started = time.perf_counter()
        fresh.fit(None, f"time {recipe}, {precision}")
    first, last = stamps
    return {
        "recipe": recipe,
        **arithmetic(precision),
        "changes": list(changes),
        "batch_size": size,
        "steps": plan.timed_steps,
        "images_per_second": plan.timed_steps * size / (last - first),
        "seconds_of_first_steps": first - started,
        "parameters": sum(parameter.numel() for parameter in fresh.network.parameters()),
        "peak_bytes_of_process": memory[0],
    }


@contextmanager
def _stamped(*steps: int) -> Iterator[list[float]]:
    """Yield the times at which optimisers end these steps, counted from here, when the device is done."""
    stamps: list[float] = []
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done in steps:
            synchronise()
            stamps.append(time.perf_counter())

    hook = register_optimizer_step_post_hook(count)
    try:
        yield stamps
    finally:
        hook.remove()


@contextmanager
def _peak_memory() -> Iterator[list[int | None]]:
    """Yield a list that gets, at the end, the most bytes of CUDA memory meanwhile; `None` without any.

    What the process held before, such as the judge, is among them.
    """
    found: list[int | None] = []
    device = process_state().device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    found.append(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)
