"""The features of whole sets of images, extracted once, block by block, and kept by content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from gen_unlearn.image_sets import ImageSet
from gen_unlearn.metrics.features import (
    FeatureExtractor,
    FeatureStats,
    MeasurementProtocol,
    apply_extractor,
)
from gen_unlearn.processes import process_state
from gen_unlearn.progress import progress_bar
from gen_unlearn.repro import digest_bytes, numpy_generator
from gen_unlearn.shared_rows import shared_rows

BLOCK = 1024
"""Images whose features are kept, and found again, together."""

_READERS = 4
"""Threads that read and convert images ahead of the network."""


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of a set of images, in memory or in files, a block at a time.

    Attributes:
        name: what people call the images.
        digest: SHA-256 of the images, in their order.
        protocol: how the features were measured.
        blocks: float32 arrays ``(b, d)``, or safetensors files that hold them as ``features``.
        lengths: rows of each block.
        kept_stats: file that the statistics are kept in; `None` for none.
        strata: int64 ``(n,)``, for images that were drawn in fixed numbers from several classes, the class of
            each; `None` for independent draws of one distribution.
    """

    name: str
    digest: str
    protocol: MeasurementProtocol
    blocks: Sequence[np.ndarray | Path]
    lengths: tuple[int, ...]
    kept_stats: Path | None = None
    strata: np.ndarray | None = None

    @classmethod
    def of(cls, name: str, features: np.ndarray, protocol: MeasurementProtocol) -> FeatureSet:
        """Wrap features, floats ``(n, d)``, that are in memory."""
        return cls(name, digest_bytes(features.tobytes()), protocol, [features], (len(features),))

    def __len__(self) -> int:
        return sum(self.lengths)

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self.blocks:
            yield load_file(block)["features"] if isinstance(block, Path) else block

    @cached_property
    def stats(self) -> FeatureStats:
        """Count, mean and covariance of all features."""
        if self.kept_stats is not None and self.kept_stats.exists():
            kept = load_file(self.kept_stats)
            return FeatureStats(len(self), kept["mean"], kept["cov"], self.protocol)
        stats = combine_stats(self.stats_of_parts(1))
        if self.kept_stats is not None and process_state().is_main_process:
            _save(self.kept_stats, {"mean": stats.mean, "cov": stats.cov})
        return stats

    def stats_of_parts(self, parts: int) -> list[FeatureStats]:
        """Return the statistics of disjoint random parts of equal size, give or take one image.

        Each has the strata in the proportions of the whole.
        """
        part_of_row = np.zeros(len(self), dtype=np.int64)
        if parts > 1:
            order = numpy_generator("parts", len(self)).permutation(len(self))
            if self.strata is not None:
                order = order[np.argsort(self.strata[order], kind="stable")]
            part_of_row[order] = np.arange(len(self)) % parts
        found: list[list[FeatureStats]] = [[] for _ in range(parts)]
        for start, block in zip(self._starts, self, strict=False):
            of_block = part_of_row[start : start + len(block)]
            for part in np.unique(of_block):
                rows = block[of_block == part]
                found[part].append(FeatureStats.from_features(rows, self.protocol, smallest=1))
        return [combine_stats(members) for members in found]

    @property
    def _starts(self) -> np.ndarray:
        """The first row of each block, and the number of all rows."""
        return np.cumsum([0, *self.lengths])

    def array(self) -> np.ndarray:
        """Return all features as one array ``(n, d)``."""
        return np.concatenate(list(self))

    def rows(self, wanted: np.ndarray) -> np.ndarray:
        """Return some rows, given by ascending integers, as one array ``(len(wanted), d)``."""
        picked = []
        for (start, end), block in zip(pairwise(self._starts), self, strict=True):
            first, last = np.searchsorted(wanted, [start, end])
            picked.append(block[wanted[first:last] - start])
        return np.concatenate(picked)

    def sample(self, largest: int, *seed: int | str) -> np.ndarray:
        """Return all features if there are at most `largest`, else as many at random, ``(n, d)``."""
        if len(self) <= largest:
            return self.array()
        chosen = numpy_generator("features", *seed).choice(len(self), largest, replace=False)
        return self.rows(np.sort(chosen))


def combine_stats(parts: Sequence[FeatureStats]) -> FeatureStats:
    """Merge the statistics of some sets of images."""
    total = parts[0]
    for part in parts[1:]:
        total = total.merge(part)
    return total


def measure_features(
    images: ImageSet, extractor: FeatureExtractor, cache: Path | None = None, batch_size: int = 64
) -> FeatureSet:
    """Extract the features of a set of images, or find those that were extracted before.

    Images are read by threads ahead of the network, so that two batches of them are in memory and not the
    set. With several processes each takes some of the blocks; they meet in the cache, which all must see, or
    without one send each other the features, which lie in memory anyway.

    Args:
        images: the images.
        extractor: see `FeatureExtractor`.
        cache: folder that holds features by the digest of the images, the extractor and its resize.
        batch_size: images that go through the network at once.

    Raises:
        ValueError: there are fewer than two images, or they do not have one size although the extractor does
            not resize.
        ImageDecodeError: an image cannot be decoded.
    """
    if len(images) < 2:
        raise ValueError(f"expected at least two images in {images.name}, got {len(images)}")
    protocol, description = MeasurementProtocol.of(extractor, images.read(0)), f"features of {images.name}"
    places = [slice(start, min(start + BLOCK, len(images))) for start in range(0, len(images), BLOCK)]
    lengths = tuple(rows.stop - rows.start for rows in places)
    with ThreadPoolExecutor(_READERS) as readers:

        def key(rows: slice) -> str:
            return digest_bytes(*readers.map(images.digest, range(rows.start, rows.stop)))

        def extract(rows: slice) -> np.ndarray:
            numbers = range(rows.start, rows.stop)
            return _extract(images, numbers, extractor, protocol, readers, batch_size)

        if cache is None:
            features = shared_rows(len(images), BLOCK, extract, description)
            digest = _digest(key(rows) for rows in places)
            return FeatureSet(images.name, digest, protocol, [features[rows] for rows in places], lengths)
        state, keys, paths = process_state(), [], []
        with progress_bar(len(images), description) as progress:
            for number, rows in enumerate(places):
                keys.append(key(rows))
                paths.append(cache / f"{_key(keys[-1], protocol)}.safetensors")
                if number % state.num_processes == state.process_index and not paths[-1].exists():
                    _save(paths[-1], {"features": extract(rows)})
                progress.update(lengths[number])
    state.wait_for_everyone()
    digest = _digest(keys)
    kept_stats = cache / f"{_key(digest, protocol)}-stats.safetensors"
    return FeatureSet(images.name, digest, protocol, paths, lengths, kept_stats)


def _digest(keys: Iterable[str]) -> str:
    """Return the digest of a set from those of its blocks."""
    return digest_bytes(*(key.encode() for key in keys))


def _key(digest: str, protocol: MeasurementProtocol) -> str:
    """Return the name under which features are kept."""
    shape = str(protocol.input_shape)
    parts = (digest, protocol.extractor_digest, protocol.resize, shape)
    return digest_bytes(*(part.encode() for part in parts))[:32]


def _extract(
    images: ImageSet,
    rows: range,
    extractor: FeatureExtractor,
    protocol: MeasurementProtocol,
    readers: ThreadPoolExecutor,
    batch_size: int,
) -> np.ndarray:
    """Return the features of a block, float32 ``(rows, d)``.

    Threads write one batch of inputs while the network sees the other: the same two pieces of memory all
    the time, as new memory costs more than to resize an image. They copy with NumPy, as torch would
    start threads of its own for each of them.
    """

    def read(row: int, place: torch.Tensor) -> None:
        inputs = extractor.preprocess(images.read(row))
        if tuple(inputs.shape) != protocol.input_shape:
            raise ValueError(
                f"expected images of one size in {images.name}, got {tuple(inputs.shape)} and "
                f"{protocol.input_shape}; set --size PIXELS, or take an extractor that resizes"
            )
        np.copyto(place.numpy(), inputs.numpy(force=True))

    def fill(batch: torch.Tensor, start: int) -> list[Future[None]]:
        return [readers.submit(read, row, place) for row, place in zip(rows[start:], batch, strict=False)]

    features = np.empty((len(rows), extractor.dim), dtype=np.float32)
    seen, filling = torch.empty(2, min(batch_size, len(rows)), *protocol.input_shape, device="cpu")
    being_read = fill(filling, 0)
    for start in range(0, len(rows), batch_size):
        for image in being_read:
            image.result()
        seen, filling, count = filling, seen, len(being_read)
        being_read = fill(filling, start + batch_size)
        features[start : start + batch_size] = apply_extractor(extractor, seen[:count])
    return features


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as safetensors, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{process_state().process_index}.unfinished")
    save_file(arrays, unfinished)
    unfinished.replace(path)
