import math
from dataclasses import replace

import numpy as np
import pytest

from gen_unlearn.metrics.features import FeatureStats, MeasurementProtocol
from gen_unlearn.metrics.frechet import frechet_distance, frechet_distance_of_features
from gen_unlearn.metrics.jackknife import block_jackknife, interleaved_blocks, split_half

PROTOCOL = MeasurementProtocol("toy", "0" * 64, "none", (1, 8, 8))


def population(dim: int) -> tuple[FeatureStats, np.ndarray]:
    """Return the exact moments of a Gaussian and the matrix that mixes white noise into it."""
    mixing = np.random.default_rng(dim).normal(size=(dim, dim)) / np.sqrt(dim)
    return FeatureStats(1_000_000, np.full(dim, 0.3), mixing.T @ mixing, PROTOCOL), mixing


def reference(dim: int) -> FeatureStats:
    return FeatureStats(1_000_000, np.zeros(dim), np.diag(np.linspace(0.2, 2, dim)), PROTOCOL)


def draw(dim: int, count: int, seed: int) -> np.ndarray:
    exact, mixing = population(dim)
    return np.random.default_rng(seed).normal(size=(count, dim)) @ mixing + exact.mean


def stats(rows: np.ndarray) -> FeatureStats:
    return FeatureStats.from_features(rows, PROTOCOL)


@pytest.mark.parametrize(("dim", "count", "blocks"), [(8, 40, 2), (8, 43, 5), (16, 12, 3), (16, 12, 6)])
def test_equals_leaving_out_the_images_themselves(dim: int, count: int, blocks: int) -> None:
    rows, other = draw(dim, count, seed=1), draw(dim, 200, seed=2)
    found = block_jackknife(interleaved_blocks(rows, blocks, PROTOCOL), stats(other))
    position = np.arange(count) % blocks
    left = np.array([frechet_distance_of_features(rows[position != b], other) for b in range(blocks)])
    full = frechet_distance_of_features(rows, other)
    assert found.value == pytest.approx(full, rel=3e-6)
    assert found.corrected == pytest.approx(blocks * full - (blocks - 1) * left.mean(), rel=3e-5)
    expected = math.sqrt((blocks - 1) / blocks * np.square(left - left.mean()).sum())
    assert found.standard_error == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("dim", "count", "blocks"), [(8, 64, 8), (16, 160, 10)])
def test_jackknife_finds_error_and_bias(dim: int, count: int, blocks: int) -> None:
    target = reference(dim)
    truth = frechet_distance(population(dim)[0], target)
    draws = range(300)
    found = [
        block_jackknife(interleaved_blocks(draw(dim, count, seed), blocks, PROTOCOL), target)
        for seed in draws
    ]
    values, corrected = (np.array([getattr(one, key) for one in found]) for key in ("value", "corrected"))
    assert np.mean([one.standard_error for one in found]) == pytest.approx(values.std(ddof=1), rel=0.15)
    bias = values.mean() - truth
    assert bias > 5 * values.std() / math.sqrt(len(values))
    assert abs(corrected.mean() - truth) < 0.25 * bias


def test_split_halves_remove_most_of_the_bias() -> None:
    dim, count = 16, 64
    target = reference(dim)
    truth = frechet_distance(population(dim)[0], target)
    raw, corrected = [], []
    for seed in range(600):
        rows = draw(dim, count, seed)
        raw.append(frechet_distance(stats(rows), target))
        corrected.append(split_half(*interleaved_blocks(rows, 2, PROTOCOL), target))
    assert abs(np.mean(corrected) - truth) < 0.25 * (np.mean(raw) - truth)


def test_two_blocks_are_two_halves() -> None:
    halves = interleaved_blocks(draw(8, 40, seed=1), 2, PROTOCOL)
    whole = block_jackknife(halves, reference(8))
    assert whole.corrected == pytest.approx(split_half(*halves, reference(8)), rel=1e-9)
    assert whole.value == frechet_distance(halves[0].merge(halves[1]), reference(8))


def test_blocks_may_be_single_images() -> None:
    rows, target = draw(8, 40, seed=1), reference(8)
    blocks = [FeatureStats.from_features(row[None], PROTOCOL, smallest=1) for row in rows]
    left = np.array([frechet_distance(stats(np.delete(rows, row, axis=0)), target) for row in range(40)])
    found = block_jackknife(blocks, target)
    assert found.standard_error == pytest.approx(math.sqrt(39 * left.var()), rel=1e-8)
    assert found.corrected == pytest.approx(40 * found.value - 39 * left.mean(), rel=1e-8)


def test_blocks_take_every_nth_image() -> None:
    rows = draw(8, 23, seed=1)
    blocks = interleaved_blocks(rows, 4, PROTOCOL)
    assert [block.n for block in blocks] == [6, 6, 6, 5]
    np.testing.assert_allclose(blocks[1].mean, rows[[1, 5, 9, 13, 17, 21]].mean(axis=0))
    np.testing.assert_allclose(blocks[3].cov, np.cov(rows[3::4], rowvar=False))


def test_refuses_blocks_that_are_no_jackknife() -> None:
    blocks, target = interleaved_blocks(draw(8, 40, seed=1), 4, PROTOCOL), reference(8)
    with pytest.raises(ValueError, match=r"got 1 of sizes \[10\]"):
        block_jackknife(blocks[:1], target)
    with pytest.raises(ValueError, match="got 0 of sizes"):
        block_jackknife([], target)
    with pytest.raises(ValueError, match=r"got 3 of sizes \[10, 20\]"):
        block_jackknife([blocks[0].merge(blocks[1]), *blocks[2:]], target)
    with pytest.raises(
        ValueError, match="two halves of one size >= 2, give or take one image, got 20 and 10"
    ):
        split_half(blocks[0].merge(blocks[1]), blocks[2], target)
    one = FeatureStats.from_features(draw(8, 1, seed=1), PROTOCOL, smallest=1)
    with pytest.raises(ValueError, match=r"2 images without any of them, got 2 of sizes \[1\]"):
        block_jackknife([one, one], target)
    with pytest.raises(ValueError, match="got 1 and 1"):
        split_half(one, one, target)
    with pytest.raises(ValueError, match="one protocol"):
        block_jackknife([blocks[0], replace(blocks[1], protocol=replace(PROTOCOL, resize="clean"))], target)
    with pytest.raises(ValueError, match="got 21 blocks for 40 images; ask for fewer"):
        interleaved_blocks(np.zeros((40, 8)), 21, PROTOCOL)
