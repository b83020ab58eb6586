"""The speed and memory of features and of the measures that are made of them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.linalg
from torch import nn

from evaluation.clean_fid_folders import clean_fid_distance
from evaluation.folder_distances import clean_fid_extractor, distance, features_of
from evaluation.folder_networks import BATCH, inception, small_network
from evaluation.picture_folders import write_pictures
from evaluation.timing import Row, fastest_workers, in_turns, seconds_of, synchronise
from gen_unlearn.image_sets import ImageArray
from gen_unlearn.judging.distances import measure_frechet
from gen_unlearn.metrics.data_copying import authenticity, copying_z, mean_minimum_cosine_distance
from gen_unlearn.metrics.extractors.random_conv import RandomConvFeatures
from gen_unlearn.metrics.feature_sets import FeatureSet, measure_features
from gen_unlearn.metrics.frechet import frechet_distance_of_features
from gen_unlearn.metrics.kernel import kernel_distance_estimate, permutation_p_value
from gen_unlearn.metrics.manifold import manifold_metrics
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.processes import process_state
from gen_unlearn.repro import numpy_generator

ROOT = Path(__file__).parents[1]
PICTURES, FEW_PICTURES = 400, 16
"""Pictures of each folder for a small network, and for Inception-V3."""

MEASURED = 10_000
"""Images on each side of the measures."""


def measuring_rows(repeats: int) -> list[Row]:
    """Time features and distances of folders, statistics, and every measure beside extraction."""
    with tempfile.TemporaryDirectory() as scratch:
        generated = write_pictures(Path(scratch) / "generated", ".png", PICTURES)
        reference = write_pictures(Path(scratch) / "reference", ".png", PICTURES, first=PICTURES)
        small = write_pictures(Path(scratch) / "few", ".png", FEW_PICTURES)
        rows = [
            *_folder_rows(generated, reference, min(repeats, 5)),
            _memory_row(generated, reference),
            *_inception_rows(small, repeats),
        ]
    return [*rows, _statistics_row(repeats), *_measure_rows(min(repeats, 2))]


def _folder_rows(generated: Path, reference: Path, repeats: int) -> list[Row]:
    """Compare the distance of two folders with clean-fid's at its best number of workers."""
    network = small_network()

    def theirs(workers: int) -> float:
        return clean_fid_distance(generated, reference, network, workers)

    np.testing.assert_allclose(distance(generated, reference, network), theirs(0), rtol=1e-4)
    best = fastest_workers(theirs)
    pairs = in_turns(lambda: theirs(best), lambda: distance(generated, reference, network), repeats)
    work = f"speed of features and FID of two folders of {PICTURES:,} PNG files, a small network"
    return [Row.of_ratio(work, f"clean-fid, {best} workers", pairs, 1.0, "higher")]


def _memory_row(generated: Path, reference: Path) -> Row:
    """Compare the peak memory of fresh processes."""
    peaks = []
    for side in ("folder_distances", "clean_fid_folders"):
        words = [sys.executable, "-m", f"evaluation.{side}", str(generated), str(reference)]
        peaks.append(int(subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout))
    work = "peak memory of features and FID of the same folders"
    return Row.of_ratio(work, "clean-fid, without workers", [(peaks[0], peaks[1])], 1.0)


def _inception_rows(folder: Path, repeats: int) -> list[Row]:
    """Compare extraction with a network that costs much more than to read and resize."""
    from cleanfid.fid import get_folder_features

    network, device = inception(), process_state().device
    extractor = clean_fid_extractor(network, 2048)

    def theirs() -> np.ndarray:
        found: np.ndarray = get_folder_features(
            str(folder), network, 0, batch_size=BATCH, device=device, verbose=False
        )
        return found

    def ours() -> np.ndarray:
        return features_of(folder, extractor).array()

    np.testing.assert_allclose(ours(), theirs(), rtol=1e-3, atol=1e-4)
    clock = _NetworkClock(network)
    turns = np.array(in_turns(theirs, ours, repeats, clock.seconds_of))  # turns, sides, all and the network
    whole, inside = turns[..., 0], turns[..., 1]
    same = Row.of_ratio("", "", inside).measured
    share = np.median(inside[:, 1] / whole[:, 1])
    reason = f"the network, the same on both sides, is {share:.0%} of our time and alone was at {same}"
    work, other = f"{FEW_PICTURES} PNG files, Inception-V3 with fresh weights", "clean-fid, without workers"
    return [
        Row.of_ratio(f"speed of features of {work}", other, whole, 1.0, "higher", reason),
        Row.of_ratio(f"speed of all but the network, {work}", other, whole - inside),
    ]


class _NetworkClock:
    """What times some work, and apart from it the network that the work calls.

    Args:
        network: gets hooks that stay.
    """

    def __init__(self, network: nn.Module) -> None:
        self._inside = self._begun = 0.0
        network.register_forward_pre_hook(self._begin)
        network.register_forward_hook(self._end)

    def seconds_of(self, work: Callable[[], object]) -> tuple[float, float]:
        """Return the seconds of some work, and those of the network in it."""
        self._inside = 0.0
        return seconds_of(work), self._inside

    def _begin(self, *_: object) -> None:
        synchronise()
        self._begun = time.perf_counter()

    def _end(self, *_: object) -> None:
        synchronise()
        self._inside += time.perf_counter() - self._begun


def _statistics_row(repeats: int) -> Row:
    """Compare the nuclear norm with the root of the product of both covariances, which is taken once."""
    draws = numpy_generator("statistics")
    mixing = draws.normal(size=(2048, 2048)) / 45
    x, y = ((draws.normal(size=(500, 2048)) @ mixing).astype(np.float32) for _ in range(2))

    def with_root() -> float:
        covs = [np.cov(features, rowvar=False) for features in (x, y)]
        root = scipy.linalg.sqrtm(covs[0] @ covs[1])
        gap = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
        return float(gap + np.trace(covs[0]) + np.trace(covs[1]) - 2 * np.trace(root).real)

    found: list[float] = []
    reference = seconds_of(lambda: found.append(with_root()))
    np.testing.assert_allclose(frechet_distance_of_features(x, y), found[0], rtol=1e-5)
    pairs = [(reference, seconds_of(lambda: frechet_distance_of_features(x, y))) for _ in range(repeats)]
    work = "speed of the Fréchet distance, 500 against 500 features of dimension 2,048"
    return Row.of_ratio(work, "scipy's sqrtm of the product, once", pairs, 20.0, "higher")


def _measure_rows(repeats: int) -> list[Row]:
    """Time each measure of 10,000 generated against 10,000 real images, beside extracting their features."""
    images = numpy_generator(0, "measures").integers(0, 256, (2, MEASURED, 32, 32, 3), dtype=np.uint8)
    extractor, config = RandomConvFeatures(device=process_state().device), ComparisonConfig()

    def extract() -> list[FeatureSet]:
        return [measure_features(ImageArray("noise", part), extractor) for part in images]

    generated, reference = extract()  # a set remembers its statistics, a copy of it does not
    x, y = generated.array(), reference.array()
    measures: dict[str, Callable[[], object]] = {
        "Fréchet distance, error and bias": lambda: measure_frechet(
            replace(generated), replace(reference), config
        ),
        "kernel distance and error": lambda: kernel_distance_estimate(x, y),
        "p-value from 200 permutations": lambda: permutation_p_value(x, y),
        "precision, recall, density, coverage": lambda: manifold_metrics(real=y, generated=x),
        "authenticity": lambda: authenticity(train=y, generated=x),
        "copying z (C_T)": lambda: copying_z(train=y, test=y[::2], generated=x),
        "MiFID's divisor": lambda: mean_minimum_cosine_distance(train=y, generated=x),
    }
    extracting = [seconds_of(extract) for _ in range(repeats)]
    return [
        Row.of_ratio(
            f"{name}, {MEASURED:,} against {MEASURED:,} images",
            "extracting 64 random features",
            [(seconds_of(measure), seconds) for seconds in extracting],
        )
        for name, measure in measures.items()
    ]
