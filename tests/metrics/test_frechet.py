from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from gen_unlearn.metrics.features import FeatureStats, MeasurementProtocol
from gen_unlearn.metrics.frechet import (
    FrechetMeasurement,
    frechet_distance,
    frechet_distance_of_features,
    frechet_standard_error,
    influence_function,
    paired_standard_error,
)

PROTOCOL = MeasurementProtocol("toy", "0" * 64, "none", (1, 8, 8))


def gaussian(mean: np.ndarray, cov: np.ndarray) -> FeatureStats:
    return FeatureStats(1000, mean, cov, PROTOCOL)


def features(count: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Draw correlated features whose distribution depends on nothing but `dim` and `shift`."""
    mixing = np.random.default_rng(1000 + dim).normal(size=(dim, dim)) / np.sqrt(dim)
    mixing += shift * np.diag(np.linspace(0, 1, dim))
    return np.random.default_rng(seed).normal(size=(count, dim)) @ mixing + shift


def stats(rows: np.ndarray) -> FeatureStats:
    return FeatureStats.from_features(rows, PROTOCOL)


def influence(rows: np.ndarray, reference: FeatureStats) -> np.ndarray:
    return influence_function(stats(rows), reference)(rows)


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


@pytest.mark.parametrize(("n", "m"), [(40, 500), (500, 64), (30, 20), (64, 64)])
def test_nuclear_norm_and_eigenvalues_agree(n: int, m: int) -> None:
    x, y = features(n, 64, seed=1), features(m, 64, seed=2, shift=0.3)
    assert frechet_distance_of_features(x, y) == pytest.approx(frechet_distance(stats(x), stats(y)), rel=3e-6)


def test_distance_of_features_agrees_with_torchmetrics_and_clean_fid() -> None:
    from torchmetrics.image.fid import _compute_fid

    x, y = features(600, 32, seed=1).astype(np.float32), features(500, 32, seed=2, shift=0.3)
    moments = [
        part for rows in (x.astype(float), y) for part in (rows.mean(axis=0), np.cov(rows, rowvar=False))
    ]
    expected = float(_compute_fid(*map(torch.from_numpy, moments)))
    assert frechet_distance_of_features(x, y) == pytest.approx(expected, rel=1e-6)
    fid = pytest.importorskip("cleanfid.fid")
    try:
        expected = fid.frechet_distance(*moments)
    except TypeError as error:
        pytest.skip(f"this clean-fid does not run with this SciPy: {error}")
    assert frechet_distance_of_features(x, y) == pytest.approx(expected, rel=1e-6)


def test_nuclear_norm_is_exact_where_covariances_are_singular() -> None:
    """Take two points each, on parallel lines 3 apart, with standard deviations sqrt(2) and 2 sqrt(2)."""
    x, y = np.zeros((2, 5)), np.zeros((2, 5))
    x[:, 0], y[:, 0], y[:, 1] = [-1, 1], [-2, 2], 3
    assert frechet_distance_of_features(x, y) == pytest.approx(9 + 2, rel=1e-12)
    assert frechet_distance_of_features(x, x) <= 1e-12


def test_distance_of_features_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match="one dimension, got 3 and 4"):
        frechet_distance_of_features(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match=r"n >= 2, got \(1, 3\)"):
        frechet_distance_of_features(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="expected finite features"):
        frechet_distance_of_features(np.full((5, 3), np.nan), np.zeros((5, 3)))


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
    rows = features(count, 64, seed=0)
    assert 0 <= frechet_distance_of_features(rows, rows) <= 1e-6


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
    psi = influence(rows, reference)
    assert psi.mean() == pytest.approx(0, abs=1e-12)
    n, base = len(rows), stats(rows)
    for image in (0, 7, 100):
        weight, step = 1e-6, rows[image] - base.mean  # mix in a little of one image: (1 - w) P + w delta
        cov = (1 - weight) * base.cov * (n - 1) / n + weight * (1 - weight) * np.outer(step, step)
        mixed = replace(base, mean=base.mean + weight * step, cov=cov)
        plain = replace(base, cov=base.cov * (n - 1) / n)
        slope = (frechet_distance(mixed, reference) - frechet_distance(plain, reference)) / weight
        assert psi[image] == pytest.approx(slope, rel=0.02, abs=0.02)


def test_influence_takes_the_images_in_blocks() -> None:
    rows, reference = features(90, 8, seed=1, shift=0.3), stats(features(5000, 8, seed=0))
    psi = influence_function(stats(rows), reference)
    blocks = np.concatenate([psi(rows[start : start + 17]) for start in range(0, 90, 17)])
    np.testing.assert_allclose(blocks, psi(rows), rtol=1e-10, atol=1e-12)
    assert abs(blocks.mean()) < 1e-12
    assert psi(rows[:0]).shape == (0,)


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
        [paired_standard_error(influence(a, reference), influence(b, reference)) for a, b in draws[:100]]
    )
    assert predicted == pytest.approx(np.std(gaps, ddof=1), rel=0.15)
    assert predicted < 0.5 * frechet_standard_error(draws[0][0], reference)


def test_standard_error_says_how_many_images_it_needs() -> None:
    reference = stats(features(100, 8, seed=0))
    with pytest.raises(ValueError, match="8 images and 8 dimensions; generate more"):
        frechet_standard_error(features(8, 8, seed=1), reference)
    with pytest.raises(ValueError, match="dimension 8 as in the reference, got 4"):
        influence(features(50, 4, seed=1), reference)
    with pytest.raises(ValueError, match=r"shape \(b, 8\) as in the reference, got \(5, 4\)"):
        influence_function(reference, reference)(np.zeros((5, 4)))
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        paired_standard_error(np.zeros(3), np.zeros(4))


def measurement(value: float, error: float | None = 0.3) -> FrechetMeasurement:
    return FrechetMeasurement(value, error, None, 1000, 5000, "a" * 64, PROTOCOL)


def test_difference_of_two_distances_adds_their_errors() -> None:
    gap = measurement(12.0).minus(measurement(7.5, 0.4))
    assert (gap.value, gap.standard_error) == pytest.approx((4.5, 0.5))
    assert measurement(12.0, None).minus(measurement(7.5), paired_error=0.1).standard_error == 0.1
    with pytest.raises(ValueError, match=r"got None and 0\.3; estimate them"):
        measurement(12.0, None).minus(measurement(7.5))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n": 500}, r"number of images \(1000 and 500\)"),
        ({"reference_n": 4999}, r"number of reference images \(5000 and 4999\)"),
        ({"reference_digest": "b" * 64}, r"reference digest \(a{64} and b{64}\)"),
        (
            {"protocol": replace(PROTOCOL, extractor="inception")},
            r"feature extractor \(toy 0+ and inception 0+\)",
        ),
        ({"protocol": replace(PROTOCOL, extractor_digest="1")}, r"feature extractor \(toy 0+ and toy 1\)"),
        ({"protocol": replace(PROTOCOL, resize="clean")}, r"resize \(none and clean\)"),
        ({"protocol": replace(PROTOCOL, input_shape=(3, 8, 8))}, r"input shape \(\(1, 8, 8\) and"),
    ],
)
def test_refuses_to_compare_unlike_distances(changes: dict[str, Any], named: str) -> None:
    other = replace(measurement(7.5), **changes)
    with pytest.raises(ValueError, match=rf"got different {named}.*measure both again"):
        measurement(12.0).minus(other, paired_error=0.1)


def test_names_every_difference() -> None:
    other = replace(measurement(7.5), n=500, reference_n=7)
    with pytest.raises(ValueError, match=r"\(1000 and 500\), number of reference images \(5000 and 7\);"):
        measurement(12.0).minus(other)


@pytest.mark.parametrize(
    "changes", [{"value": -1.0}, {"value": np.nan}, {"standard_error": -0.1}, {"n": 1}, {"reference_n": 0}]
)
def test_refuses_what_is_no_distance(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a finite distance"):
        replace(measurement(12.0), **changes)
