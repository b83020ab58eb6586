"""Features of whole sets: in blocks, kept by content, and never mixed up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from two_processes import as_two

from gen_unlearn.image_sets import ImageArray
from gen_unlearn.metrics import feature_sets
from gen_unlearn.metrics.extractors.random_conv import RandomConvFeatures
from gen_unlearn.metrics.feature_sets import FeatureSet, measure_features
from gen_unlearn.metrics.features import FeatureStats, MeasurementProtocol, extract_features

PROTOCOL = MeasurementProtocol("toy", "0" * 64, "none", (1, 8, 8))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_sets, "BLOCK", 10)


def noise(count: int, seed: int = 0) -> ImageArray:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return ImageArray("noise", pixels)


class Counting(RandomConvFeatures):
    """Count the images that go through the network."""

    seen = 0

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen += len(inputs)
        return super().__call__(inputs)


def test_blocks_are_one_set() -> None:
    images, extractor = noise(37), RandomConvFeatures(dim=16)
    found = measure_features(images, extractor, batch_size=4)
    expected = extract_features(extractor, images.images)
    assert (len(found), found.lengths) == (37, (10, 10, 10, 7))
    np.testing.assert_allclose(found.array(), expected, atol=1e-5)
    stats = FeatureStats.from_features(found.array(), found.protocol)
    np.testing.assert_allclose(found.stats.mean, stats.mean, rtol=1e-12)
    np.testing.assert_allclose(found.stats.cov, stats.cov, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.rows(np.array([0, 9, 10, 36])), found.array()[[0, 9, 10, 36]])


def test_the_cache_is_found_again_by_content(tmp_path: Path) -> None:
    images, extractor = noise(37), Counting(dim=16)
    first = measure_features(images, extractor, tmp_path)
    _ = first.stats
    assert extractor.seen == 37
    again = measure_features(ImageArray("other name", images.images), extractor, tmp_path)
    assert extractor.seen == 37
    np.testing.assert_array_equal(first.array(), again.array())
    np.testing.assert_array_equal(first.stats.cov, again.stats.cov)
    assert first.digest == again.digest

    changed = images.images.copy()
    changed[12] ^= 1
    measure_features(ImageArray("noise", changed), extractor, tmp_path)
    assert extractor.seen == 47, "one block"
    measure_features(images, Counting(seed=1, dim=16), tmp_path)
    np.testing.assert_array_equal(measure_features(images, extractor, tmp_path).array(), first.array())
    assert not list(tmp_path.glob(".*")), "nothing unfinished"


def test_an_interrupted_set_goes_on(tmp_path: Path) -> None:
    class Failing(Counting):
        def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.seen >= 20:
                raise KeyboardInterrupt
            return super().__call__(inputs)

    with pytest.raises(KeyboardInterrupt):
        measure_features(noise(37), Failing(dim=16), tmp_path)
    extractor = Counting(dim=16)
    measure_features(noise(37), extractor, tmp_path)
    assert extractor.seen == 17


@pytest.mark.parametrize("count", [37, 10])
def test_two_processes_without_a_cache_share_the_blocks(tmp_path: Path, count: int) -> None:
    """They send each other the features; of a single block the other process has none."""
    expected = measure_features(noise(count), RandomConvFeatures(dim=16))

    def extract(rank: int) -> None:
        extractor = Counting(dim=16)
        found = measure_features(noise(count), extractor)
        assert extractor.seen == {37: [20, 17], 10: [10, 0]}[count][rank]
        assert (found.digest, found.lengths) == (expected.digest, expected.lengths)
        save_file({"features": found.array(), "cov": found.stats.cov}, tmp_path / f"{rank}")

    as_two(extract)
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}")
        np.testing.assert_array_equal(found["features"], expected.array())
        np.testing.assert_array_equal(found["cov"], expected.stats.cov)


def test_parts_are_disjoint_equal_and_random() -> None:
    """Images come in cycles of their classes: a part by position would be a part by class."""
    rows = np.tile(np.arange(10.0), 10)[:, None] + np.zeros((1, 2))
    found = FeatureSet("cycle", "0", PROTOCOL, [rows[:33], rows[33:40], rows[40:]], (33, 7, 60))
    parts = found.stats_of_parts(20)
    assert [part.n for part in parts] == [5] * 20
    assert np.mean([part.cov[0, 0] > 0 for part in parts]) == 1, "no part is one class"
    assert sum(part.mean[0] * part.n for part in parts) == pytest.approx(rows[:, 0].sum())
    assert parts[3].mean[0] == found.stats_of_parts(20)[3].mean[0]


def test_a_sample_is_random_and_reproducible() -> None:
    found = FeatureSet.of("numbers", np.arange(100.0)[:, None], PROTOCOL)
    np.testing.assert_array_equal(found.sample(100), found.array())
    some = found.sample(10, 0)
    assert len(np.unique(some)) == 10
    np.testing.assert_array_equal(some, found.sample(10, 0))
    assert not np.array_equal(some, found.sample(10, 1))


def test_refuses_what_cannot_be_compared() -> None:
    mixed = [np.zeros((8, 8, 1), np.uint8), np.zeros((9, 8, 1), np.uint8)]

    class Mixed(ImageArray):
        def read(self, row: int) -> np.ndarray:
            return mixed[row % 2]

    with pytest.raises(ValueError, match=r"expected images of one size in noise, got \(3, 9, 8\)"):
        measure_features(Mixed("noise", noise(4).images), RandomConvFeatures())
    with pytest.raises(ValueError, match="at least two images in noise, got 1"):
        measure_features(noise(1), RandomConvFeatures())
