import numpy as np
import pytest
import scipy.stats
import torch
from torchmetrics.image.kid import poly_mmd

from gen_unlearn.metrics import kernel, neighbours
from gen_unlearn.metrics.kernel import kernel_distance, kernel_distance_estimate, permutation_p_value


def features(count: int, seed: int, dim: int = 8, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)) * (1 + shift) + shift


def by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the distance as its definition reads, pair by pair."""

    def value(f: np.ndarray, g: np.ndarray) -> float:
        return float((f @ g / len(f) + 1) ** 3)

    within = [
        np.mean([value(f, g) for i, f in enumerate(rows) for j, g in enumerate(rows) if i != j])
        for rows in (x, y)
    ]
    return float(sum(within) - 2 * np.mean([value(f, g) for f in x for g in y]))


@pytest.mark.parametrize("tile", [1, 7, 2048])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_the_sum_over_pairs_at_any_tile(
    dtype: type, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "TILE", tile)
    x, y = features(20, 0).astype(dtype), features(13, 1, shift=0.3).astype(dtype)
    expected = by_pairs(x.astype(np.float64), y.astype(np.float64))
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert kernel_distance(y, x) == pytest.approx(expected, rel=1e-10)
    assert kernel_distance_estimate(x, y).value == pytest.approx(expected, rel=1e-10)


def test_agrees_with_torchmetrics() -> None:
    x, y = features(300, 0, dim=64), features(300, 1, dim=64, shift=0.1)
    expected = float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-8)


def test_agrees_with_clean_fid() -> None:
    fid = pytest.importorskip("cleanfid.fid")
    x, y = features(300, 0, dim=64), features(300, 1, dim=64, shift=0.1)
    assert kernel_distance(x, y) == pytest.approx(fid.kernel_distance(x, y, num_subsets=1), rel=1e-8)


def test_is_unbiased_under_equal_distributions() -> None:
    distances = np.array([kernel_distance(features(12, 2 * i), features(17, 2 * i + 1)) for i in range(2000)])
    assert abs(distances.mean()) < 3 * distances.std() / np.sqrt(len(distances))
    assert 0.4 < (distances < 0).mean() < 0.75
    assert distances.std() < 5  # a shift of all features by 1 gives 20


def test_jackknife_equals_leaving_out_each_row() -> None:
    x, y = features(9, 0), features(12, 1, shift=0.3)
    without_x = np.array([kernel_distance(np.delete(x, i, axis=0), y) for i in range(len(x))])
    without_y = np.array([kernel_distance(x, np.delete(y, i, axis=0)) for i in range(len(y))])
    expected = np.sqrt(8 / 9 * np.square(without_x - without_x.mean()).sum() + 11 * without_y.var())
    assert kernel_distance_estimate(x, y).standard_error == pytest.approx(expected, rel=1e-8)


def draws(count: int, n: int, m: int, shift: float) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(features(n, 2 * i), features(m, 2 * i + 1, shift=shift)) for i in range(count)]


@pytest.mark.parametrize(("n", "m", "shift"), [(100, 100, 0.3), (100, 250, 0.5), (250, 100, 0.2)])
def test_standard_error_matches_monte_carlo(n: int, m: int, shift: float) -> None:
    pairs = draws(600, n, m, shift)
    spread = np.std([kernel_distance(x, y) for x, y in pairs], ddof=1)
    predicted = np.mean([kernel_distance_estimate(x, y).standard_error for x, y in pairs[:150]])
    assert predicted == pytest.approx(spread, rel=0.15)


def test_standard_error_is_too_large_by_at_most_root_two_under_equal_distributions() -> None:
    pairs = draws(600, 100, 100, shift=0)
    spread = np.std([kernel_distance(x, y) for x, y in pairs], ddof=1)
    predicted = np.mean([kernel_distance_estimate(x, y).standard_error for x, y in pairs[:150]])
    assert spread < predicted < 1.5 * spread


def test_blocks_take_over_for_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "FULL_LIMIT", 200)
    monkeypatch.setattr(kernel, "BLOCK", 20)
    estimates = [kernel_distance_estimate(x, y) for x, y in draws(300, 400, 320, shift=0.3)]
    values = np.array([estimate.value for estimate in estimates])
    errors = np.array([estimate.standard_error for estimate in estimates])
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.15)
    exact = np.mean([kernel_distance(x, y) for x, y in draws(60, 400, 320, shift=0.3)])
    assert values.mean() == pytest.approx(exact, abs=4 * values.std() / np.sqrt(60))


def test_blocks_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "FULL_LIMIT", 50)
    monkeypatch.setattr(kernel, "BLOCK", 20)
    x, y = features(100, 0), features(100, 1)
    assert kernel_distance_estimate(x, y, seed=3) == kernel_distance_estimate(x, y, seed=3)
    assert kernel_distance_estimate(x, y, seed=3) != kernel_distance_estimate(x, y, seed=4)


def test_p_values_are_uniform_under_equal_distributions() -> None:
    p_values = [permutation_p_value(x, y, permutations=39) for x, y in draws(300, 25, 35, shift=0)]
    expected = np.arange(1, 41) / 40
    assert np.isin(np.round(np.array(p_values) * 40), np.arange(1, 41)).all()
    counts = np.bincount(np.searchsorted(expected, p_values) // 8, minlength=5)
    assert scipy.stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("tile", [16, 2048])
def test_p_value_counts_permuted_distances(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(30, 0), features(20, 1, shift=0.15)
    rng, pooled = np.random.default_rng(5), np.concatenate([x, y])
    permuted = [
        kernel_distance(rows[:30], rows[30:]) for rows in (pooled[rng.permutation(50)] for _ in range(2000))
    ]
    monkeypatch.setattr(neighbours, "TILE", tile)
    share = np.mean(np.array(permuted) >= kernel_distance(x, y))
    assert 0.05 < share < 0.95
    found = permutation_p_value(x, y, permutations=2000)
    assert found == pytest.approx(share, abs=4 * np.sqrt(2 * share * (1 - share) / 2000))


def test_p_value_is_the_smallest_for_different_distributions() -> None:
    x, y = features(60, 0), features(80, 1, shift=0.8)
    assert permutation_p_value(x, y) == 1 / 201
    assert permutation_p_value(y, x, permutations=19, seed=1) == 1 / 20


def test_p_value_is_one_where_nothing_can_be_told_apart() -> None:
    for seed in range(10):
        rows = np.repeat(features(1, seed), 37 + seed, axis=0)
        assert permutation_p_value(rows, rows[:23], permutations=50) == 1


def test_refuses_what_it_cannot_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(8, 0)
    with pytest.raises(ValueError, match=r"dimension, got \[4, 8\]"):
        kernel_distance(x, features(8, 0, dim=4))
    with pytest.raises(ValueError, match="1 of 8 rows with NaN"):
        kernel_distance(x, np.where(np.arange(8)[:, None] == 3, np.nan, x))
    with pytest.raises(ValueError, match="at least 2 feature vectors in each set, got 8 and 1"):
        kernel_distance(x, x[:1])
    with pytest.raises(ValueError, match="at least 3"):
        kernel_distance_estimate(x, x[:2])
    with pytest.raises(ValueError, match="at least one permutation, got 0"):
        permutation_p_value(x, x, permutations=0)
    monkeypatch.setattr(kernel, "FULL_LIMIT", 50)
    monkeypatch.setattr(kernel, "BLOCK", 10)
    with pytest.raises(ValueError, match="at least 20 feature vectors in each set, got 100 and 8"):
        kernel_distance_estimate(features(100, 0), x)
