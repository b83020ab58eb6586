"""The speed of deletions from exemplar stores, in memory and on disk, against making them anew."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal
from unittest import mock

import numpy as np
import torch

from evaluation.timing import Row, scratch_folder, seconds_of
from gen_unlearn.commands.forget import forget
from gen_unlearn.config import load_config
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.manifest import RunManifest, TrainingRecord
from gen_unlearn.models.denoiser import build_denoiser
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.loading import weights_digest
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.processes import process_state
from gen_unlearn.repro import image_ids, numpy_generator
from gen_unlearn.runs import RunFolder

Place = Literal["in memory", "on disk"]

ROOT = Path(__file__).parent
CONFIGS = ROOT.parent / "configs"
SMALL, LARGE = 50_000, 1_000_000
SEVERAL = 1000
IN_MEMORY = 10
"""Deletions in memory that are timed for each one on disk."""
TIMES_FASTER = 1000.0
FLAT = 1.5
"""How many times as long a deletion may take with twenty times the exemplars to pass for flat."""

ANEW: dict[Place, str] = {
    "in memory": "hashing the images and building the store",
    "on disk": "writing all shards anew",
}

_NAMES = tuple(map(str, range(10)))
_ENCODED = 128


@dataclass(frozen=True)
class Deletions:
    """Seconds that were measured at one size of the store, in one place.

    Attributes:
        count: exemplars.
        place: where they are.
        anew: of making all of it anew.
        taken: of each deletion but the first, by the number of images.
        reason: where the time of a deletion on disk goes.
        written: bytes that a deletion on disk writes, by the number of images.
    """

    count: int
    place: Place
    anew: float
    taken: dict[int, list[float]]
    reason: str = ""
    written: Mapping[int, int] = field(default_factory=dict)


def deletion_rows(repeats: int) -> list[Row]:
    """Time deletions of one image and of a thousand, receipt included, at both sizes of the store."""
    encoding = _encoding_seconds(repeats)
    stores, anew = zip(*(_built(noise_images(count)) for count in (SMALL, LARGE)), strict=True)
    on_disk = [_on_disk(store, repeats) for store in stores]
    in_memory, firsts = _in_memory(stores, anew, repeats)
    rows: list[Row] = []
    for store, memory, first, disk in zip(stores, in_memory, firsts, on_disk, strict=True):
        rows += [*_rows_of(memory, encoding), *_rows_of(disk, encoding)]
        work = f"first deletion from {memory.count:,} exemplars in memory"
        rows.append(Row.of(work, "hashes the ids of all, once", [1000 * first], " ms"))
        looking = 1000 * seconds_of(partial(getattr, store, "images"))
        work = f"first look at {memory.count:,} exemplars after deletions in memory"
        rows.append(Row.of(work, "closes the gaps, once", [looking], " ms"))
    for small, large in (in_memory, on_disk):
        pairs = list(zip(large.taken[1], small.taken[1], strict=True))
        exponent = math.log(np.median([a / b for a, b in pairs])) / math.log(LARGE / SMALL)
        work = f"deletion of 1 of {LARGE:,} exemplars of 32 x 32 {large.place}"
        rows.append(Row.of_ratio(work, f"1 of {SMALL:,}: exponent {exponent:.2f}", pairs, FLAT))
    return rows


def _rows_of(deletions: Deletions, encoding: float) -> Iterator[Row]:
    for images, taken in deletions.taken.items():
        work = f"deletion of {images:,} of {deletions.count:,} exemplars of 32 x 32 {deletions.place}"
        wrote = f", writes {deletions.written[images] / 1e6:.3g} MB" if deletions.written else ""
        yield Row.of(work, f"receipt included{wrote}", [1000 * seconds for seconds in taken], " ms")
        what = f"encoding the others anew, {1000 * encoding:.3g} ms each by {_ENCODED} of them"
        for name, anew in ((ANEW[deletions.place], deletions.anew), (what, encoding * deletions.count)):
            pairs = [(anew, seconds) for seconds in taken]
            target = TIMES_FASTER if images == 1 else None
            yield Row.of_ratio(f"times faster: {work}", name, pairs, target, "higher", deletions.reason)


def noise_images(count: int) -> IndexedImages:
    """Return random images of CIFAR's size: 3 GB for a million, whose store takes 6 GB more to build."""
    draws = numpy_generator(0, "noise", count)
    pixels = draws.integers(0, 2**64, (count, 384), dtype=np.uint64).view(np.uint8).reshape(count, 32, 32, 3)
    return IndexedImages(
        pixels, draws.integers(0, len(_NAMES), count), image_ids(pixels), _NAMES, ("",) * count
    )


def _built(data: IndexedImages) -> tuple[ExemplarStore, float]:
    """Return a store of all images, and the seconds that their ids and the store took."""
    built: list[ExemplarStore] = []
    hashing = seconds_of(lambda: image_ids(data.all_images()))
    building = seconds_of(lambda: built.append(ExemplarStore.from_images(data)))
    return built[0], hashing + building


def _in_memory(
    stores: Sequence[ExemplarStore], anew: Sequence[float], repeats: int
) -> tuple[list[Deletions], list[float]]:
    """Time deletions from stores in memory, which take turns, and, apart from them, the first of each."""
    counts = [len(store) for store in stores]
    sizes = [1] * (1 + IN_MEMORY * repeats) + [SEVERAL] * max(2, repeats // 3)
    first, *turns = zip(*(_requests(store.ids, sizes) for store in stores), strict=True)
    deletes = [store.delete for store in stores]
    firsts = [seconds_of(partial(delete, one)) for delete, one in zip(deletes, first, strict=True)]
    found = zip(counts, anew, _timed(deletes, turns), strict=True)
    return [Deletions(count, "in memory", seconds, taken) for count, seconds, taken in found], firsts


def _on_disk(store: ExemplarStore, repeats: int) -> Deletions:
    """Time deletions from a run on disk: shards, receipt and ledger, flushed; and writing all shards."""
    sizes = [1] * (repeats + 1) + [SEVERAL] * max(2, repeats // 3)
    first, *requests, one, several = _requests(store.ids, [1, *sizes, 1, SEVERAL])
    with scratch_folder() as scratch:
        runs: list[RunFolder] = []
        anew = seconds_of(lambda: runs.append(run_of(store, scratch / "run")))
        with _flushes() as waited:
            forget(runs[0], first)
        (taken,) = _timed([partial(forget, runs[0])], [(request,) for request in requests])
        written = {len(request): _written(runs[0], request) for request in (one, several)}
    reason = (
        f"a thousandth is {anew:.2g} ms, and a deletion waits for {len(waited)} flushes to the disk of "
        f"{1000 * float(np.median(waited)):.2g} ms each"
    )
    return Deletions(len(store), "on disk", anew, taken, reason, written)


def _written(run: RunFolder, request: ForgetSet) -> int:
    """Return the bytes of the exemplars' files that a deletion makes anew."""
    before = set(run.exemplars_path.iterdir())
    forget(run, request)
    return sum(path.stat().st_size for path in set(run.exemplars_path.iterdir()) - before)


@contextmanager
def _flushes() -> Iterator[list[float]]:
    """Yield a list that gets the seconds of every flush of a file to the disk meanwhile."""
    waited: list[float] = []
    flush = os.fsync

    def timed(file: int) -> None:
        waited.append(seconds_of(partial(flush, file)))

    with mock.patch.object(os, "fsync", timed):
        yield waited


def run_of(store: ExemplarStore, path: Path) -> RunFolder:
    """Write a run with these exemplars, whose network is small and as good as none."""
    config = load_config(CONFIGS / "digits_spm.yaml")
    unet = build_denoiser(config.model, (8, 8, 1), len(_NAMES)).eval()
    sampler = build_sampler(config.sampling.sampler, config.noise.build())
    pipeline = SemiParametricDDPMPipeline(unet, sampler, store)
    manifest = RunManifest(config.digest, "noise", store.class_names, store.image_shape)
    run = RunFolder.create(path, config, manifest)
    run.complete_training(pipeline, TrainingRecord(0.0, 0, 0.0, 0, weights_digest(pipeline)))
    return run


def _requests(ids: np.ndarray, sizes: Sequence[int]) -> list[ForgetSet]:
    """Return requests for different images, each for so many."""
    order = numpy_generator(0, "requests").permutation(len(ids))
    *parts, _ = np.split(order, np.cumsum(sizes))
    return [ForgetSet(ids[part], "speed") for part in parts]


def _timed(
    deletes: Sequence[Callable[[ForgetSet], object]], turns: Sequence[Sequence[ForgetSet]]
) -> list[dict[int, list[float]]]:
    """Return the seconds of deletions by their size, for each store; in each turn all stores have one."""
    taken: list[dict[int, list[float]]] = [{} for _ in deletes]
    for turn in turns:
        for delete, request, seconds in zip(deletes, turn, taken, strict=True):
            seconds.setdefault(len(request), []).append(seconds_of(partial(delete, request)))
    return taken


@torch.no_grad()
def _encoding_seconds(repeats: int) -> float:
    """Return the seconds that encoding one exemplar takes with the network of the CIFAR-10 recipe."""
    config, device = load_config(CONFIGS / "cifar10_spm.yaml"), process_state().device
    unet = build_denoiser(config.model, (32, 32, 3), len(_NAMES)).eval().to(device)
    assert isinstance(unet, SemiParametricUNet2DModel)
    images = torch.rand(_ENCODED, 3, 32, 32, device=device)
    unet.encode_exemplars(images[:8])
    times = [seconds_of(partial(unet.encode_exemplars, images)) for _ in range(max(1, repeats // 4))]
    return float(np.median(times)) / _ENCODED
