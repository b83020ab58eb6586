from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch

from gen_unlearn.metrics.features import FeatureStats, MeasurementProtocol
from gen_unlearn.metrics.frechet import (
    frechet_distance,
    frechet_influence,
    frechet_standard_error,
    paired_standard_error,
)

PROTOCOL = MeasurementProtocol("toy", "0" * 64, (8, 8, 1))


def gaussian(mean: np.ndarray, cov: np.ndarray) -> FeatureStats:
    return FeatureStats(1000, mean, cov, PROTOCOL)


def features(count: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Draw correlated features whose distribution depends on nothing but `dim` and `shift`."""
    mixing = np.random.default_rng(1000 + dim).normal(size=(dim, dim)) / np.sqrt(dim)
    mixing += shift * np.diag(np.linspace(0, 1, dim))
    return np.random.default_rng(seed).normal(size=(count, dim)) @ mixing + shift


def stats(rows: np.ndarray) -> FeatureStats:
    return FeatureStats.from_features(rows, PROTOCOL)


@pytest.fixture(scope="module")
def pair() -> tuple[FeatureStats, FeatureStats]:
    return stats(features(600, 32, seed=1)), stats(features(500, 32, seed=2, shift=0.3))


def test_equals_the_formula_with_a_matrix_square_root(pair: tuple[FeatureStats, FeatureStats]) -> None:
    a, b = pair
    cross = np.trace(scipy.linalg.sqrtm(a.cov @ b.cov).real)
    expected = np.square(a.mean - b.mean).sum() + np.trace(a.cov) + np.trace(b.cov) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_agrees_with_torchmetrics(pair: tuple[FeatureStats, FeatureStats]) -> None:
    from torchmetrics.image.fid import _compute_fid

    a, b = pair
    expected = _compute_fid(*(torch.from_numpy(x) for x in (a.mean, a.cov, b.mean, b.cov)))
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)


def test_agrees_with_clean_fid(pair: tuple[FeatureStats, FeatureStats]) -> None:
    fid = pytest.importorskip("cleanfid.fid")
    a, b = pair
    try:
        expected = fid.frechet_distance(a.mean, a.cov, b.mean, b.cov)
    except TypeError as error:
        pytest.skip(f"this clean-fid does not run with this SciPy: {error}")
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_has_the_closed_form_of_commuting_covariances() -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    first, second, mean = rng.uniform(0, 3, 10), rng.uniform(0, 3, 10), rng.normal(size=10)
    first[0] = second[1] = 0  # singular covariances
    a, b = (gaussian(m, axes * spectrum @ axes.T) for m, spectrum in ((mean, first), (0 * mean, second)))
    expected = np.square(mean).sum() + np.square(np.sqrt(first) - np.sqrt(second)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [20, 200])
def test_vanishes_between_a_set_and_itself(count: int) -> None:
    own = stats(features(count, 64, seed=0))
    assert 0 <= frechet_distance(own, own) <= 1e-6


def test_refuses_unlike_protocols(pair: tuple[FeatureStats, FeatureStats]) -> None:
    a, b = pair
    with pytest.raises(ValueError, match=r"'toy'.*'inception'"):
        frechet_distance(a, replace(b, protocol=replace(PROTOCOL, extractor="inception")))


@pytest.mark.parametrize(("dim", "count"), [(8, 32), (16, 64), (8, 400)])
def test_standard_error_matches_monte_carlo(dim: int, count: int) -> None:
    reference = stats(features(20_000, dim, seed=0))
    draws = [features(count, dim, seed, shift=0.3) for seed in range(1, 801)]
    spread = np.std([frechet_distance(stats(draw), reference) for draw in draws], ddof=1)
    predicted = np.mean([frechet_standard_error(draw, reference) for draw in draws[:200]])
    assert predicted == pytest.approx(spread, rel=0.15)


def test_influence_is_the_derivative_of_the_distance() -> None:
    rows, reference = features(400, 8, seed=1, shift=0.3), stats(features(5000, 8, seed=0))
    influence = frechet_influence(rows, reference)
    assert influence.mean() == pytest.approx(0, abs=1e-12)
    n, base = len(rows), stats(rows)
    for image in (0, 7, 100):
        weight, step = 1e-6, rows[image] - base.mean  # mix in a little of one image: (1 - w) P + w delta
        cov = (1 - weight) * base.cov * (n - 1) / n + weight * (1 - weight) * np.outer(step, step)
        mixed = replace(base, mean=base.mean + weight * step, cov=cov)
        plain = replace(base, cov=base.cov * (n - 1) / n)
        slope = (frechet_distance(mixed, reference) - frechet_distance(plain, reference)) / weight
        assert influence[image] == pytest.approx(slope, rel=0.02, abs=0.02)


def test_standard_error_survives_a_dead_feature() -> None:
    rows, other = features(200, 8, seed=1, shift=0.3), features(5000, 8, seed=0)
    alive = frechet_standard_error(rows, stats(other))
    dead_rows, dead_other = (np.column_stack([x, np.zeros(len(x))]) for x in (rows, other))
    assert frechet_standard_error(dead_rows, stats(dead_other)) == pytest.approx(alive, rel=1e-6)


def test_pairing_removes_what_two_models_share() -> None:
    reference = stats(features(20_000, 8, seed=0))

    def models(seed: int) -> tuple[np.ndarray, np.ndarray]:
        common = features(200, 8, seed, shift=0.3)
        return common, common + 0.1 * features(200, 8, seed + 10_000)

    draws = [models(seed) for seed in range(1, 501)]
    gaps = [frechet_distance(stats(a), reference) - frechet_distance(stats(b), reference) for a, b in draws]
    predicted = np.mean(
        [
            paired_standard_error(frechet_influence(a, reference), frechet_influence(b, reference))
            for a, b in draws[:100]
        ]
    )
    assert predicted == pytest.approx(np.std(gaps, ddof=1), rel=0.15)
    assert predicted < 0.5 * frechet_standard_error(draws[0][0], reference)


def test_standard_error_says_how_many_images_it_needs() -> None:
    reference = stats(features(100, 8, seed=0))
    with pytest.raises(ValueError, match="8 images and 8 dimensions; generate more"):
        frechet_standard_error(features(8, 8, seed=1), reference)
    with pytest.raises(ValueError, match="dimension 8 as in the reference, got 4"):
        frechet_influence(features(50, 4, seed=1), reference)
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        paired_standard_error(np.zeros(3), np.zeros(4))
