import json

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from torchmetrics.image.mifid import _compute_cosine_distance, _mifid_compute

from gen_unlearn.metrics.data_copying import (
    authenticity,
    copying_z,
    mean_minimum_cosine_distance,
    memorization_informed_fid,
)
from gen_unlearn.metrics.estimate import Estimate

UNLIKE = ((80, (0.4, 0.3, 0.2, 0.1)), (90, (0.3, 0.2, 0.2, 0.3)))
"""Two sets of images, and the shares of them that lie 0, 1, 2 and 3 away from a training image."""


def features(count: int, seed: int, dim: int = 6, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)) * scale


def test_copies_are_not_authentic() -> None:
    train = features(200, 0)
    assert authenticity(train=train, generated=train[::-1][:150]).value == 0
    assert authenticity(train=np.repeat(train, 2, axis=0), generated=train).value == 0
    assert authenticity(train=train, generated=features(50, 1) + 100).value == 1


def test_authenticity_agrees_with_whole_matrices() -> None:
    train, generated = features(80, 0), features(60, 1, scale=0.8)
    own, between = cdist(train, train), cdist(generated, train)
    np.fill_diagonal(own, np.inf)
    nearest = between.argmin(axis=1)
    expected = own.min(axis=1)[nearest] < between.min(axis=1)
    assert 0.2 < expected.mean() < 0.8
    assert authenticity(train=train, generated=generated).value == expected.mean()


@pytest.mark.parametrize(("dim", "mutual"), [(1, 2 / 3), (2, 6 * np.pi / (8 * np.pi + 3 * np.sqrt(3)))])
def test_independent_draws_are_authentic_unless_neighbours_are_mutual(dim: int, mutual: float) -> None:
    # The probability that a point of a Poisson process is the nearest neighbour of its nearest neighbour.
    shares = [
        authenticity(train=rng.uniform(size=(500, dim)), generated=rng.uniform(size=(50, dim))).value
        for rng in map(np.random.default_rng, range(120))
    ]
    assert np.mean(shares) == pytest.approx(1 - mutual, abs=0.02)


def test_standard_error_of_authenticity_matches_monte_carlo() -> None:
    train = features(200, 0)
    found = [authenticity(train=train, generated=features(100, seed)) for seed in range(1, 301)]
    spread = np.std([estimate.value for estimate in found], ddof=1)
    assert np.mean([estimate.standard_error for estimate in found]) == pytest.approx(spread, rel=0.15)


def clusters(count: int, seed: int, weights: tuple[float, ...] = (0.5, 0.3, 0.2)) -> np.ndarray:
    """Draw from three far clusters in 5 dimensions."""
    rng = np.random.default_rng(seed)
    which = rng.choice(3, size=count, p=weights)
    return rng.normal(size=(count, 5)) + 30 * np.eye(5)[which]


def test_z_is_that_of_mann_whitney_in_each_cell() -> None:
    train, test, generated = clusters(300, 0), clusters(200, 1), clusters(250, 2) * 1.01
    found = copying_z(train=train, test=test, generated=generated)
    labels = [rows[:, :3].argmax(axis=1) for rows in (train, test, generated)]
    order = np.bincount(labels[0]).argsort()[::-1]
    expected = []
    for cell, own in zip(found.cells, order, strict=True):
        inside = [rows[label == own] for rows, label in zip((train, test, generated), labels, strict=True)]
        assert (cell.train, cell.test, cell.generated) == tuple(map(len, inside))
        to_train = [cdist(rows, inside[0]).min(axis=1) for rows in inside[1:]]
        p = scipy.stats.mannwhitneyu(
            to_train[1], to_train[0], alternative="less", use_continuity=False, method="asymptotic"
        ).pvalue
        expected.append(scipy.stats.norm.ppf(p))
        assert cell.z == pytest.approx(expected[-1], rel=1e-4)
    weights = np.bincount(labels[1])[order] / len(test)
    assert found.statistic.value == pytest.approx(weights @ expected, rel=1e-4)
    assert found.statistic.standard_error == pytest.approx(np.sqrt(np.square(weights).sum()), rel=1e-12)
    assert json.loads(json.dumps(found.as_dict()))["cells"][0]["z"] == found.cells[0].z


def test_is_standard_normal_where_generated_images_are_like_test_images() -> None:
    scores = []
    for i in range(150):
        found = copying_z(
            train=clusters(120, 3 * i), test=clusters(150, 3 * i + 1), generated=clusters(200, 3 * i + 2)
        )
        scores.append(found.statistic.value / found.statistic.standard_error)
    assert scipy.stats.kstest(scores, "norm").pvalue > 0.01
    assert np.std(scores) == pytest.approx(1, abs=0.2)


def test_copies_are_far_below_zero_and_underfitting_far_above() -> None:
    train, test = clusters(300, 0), clusters(300, 1)
    copies = train + 1e-3 * features(300, 2, dim=5)
    assert copying_z(train=train, test=test, generated=copies).statistic.value < -10
    assert copying_z(train=train, test=test, generated=train).statistic.value < -10
    noisy = clusters(300, 2) + 3 * features(300, 3, dim=5)
    assert copying_z(train=train, test=test, generated=noisy).statistic.value > 5
    halves = np.concatenate([train[:150], clusters(150, 2)])
    assert copying_z(train=train, test=test, generated=halves).statistic.value < -3


def test_equal_distances_are_ties() -> None:
    train = clusters(200, 0)
    both = copying_z(train=train, test=train, generated=train[::-1])
    assert [cell.z for cell in both.cells] == [0, 0, 0]
    grid, rng = np.arange(0.0, 300, 10)[:, None], np.random.default_rng(0)
    test, generated = (rng.choice(grid, count) + rng.choice(4, (count, 1), p=p) for count, p in UNLIKE)
    found = copying_z(train=grid, test=test, generated=generated, cells=1)
    p = scipy.stats.mannwhitneyu(
        generated % 10, test % 10, alternative="less", use_continuity=False, method="asymptotic"
    ).pvalue[0]
    assert found.statistic.value == pytest.approx(scipy.stats.norm.ppf(p), rel=1e-6)


def test_small_cells_are_left_out_and_reported() -> None:
    train, test = clusters(300, 0), clusters(300, 1)
    found = copying_z(train=train, test=test, generated=clusters(200, 2, weights=(0.5, 0.45, 0.05)))
    assert found.left_out == 1
    assert found.cells[2].generated <= 20
    assert found.cells[2].z is None
    weights = np.array([cell.test for cell in found.cells[:2]]) / sum(cell.test for cell in found.cells[:2])
    assert found.statistic.value == pytest.approx(weights @ [cell.z for cell in found.cells[:2]])
    nothing = copying_z(train=train, test=test, generated=train[:20])
    assert (nothing.statistic, nothing.left_out) == (None, 3)


def test_more_dimensions_than_components_are_projected() -> None:
    train, test, generated = (features(300, seed, dim=100) for seed in range(3))
    found = copying_z(train=train, test=test, generated=generated.astype(np.float32), cells=2)
    assert abs(found.statistic.value) < 4
    assert found == copying_z(train=train, test=test, generated=generated.astype(np.float32), cells=2)
    spread = np.concatenate([np.full(64, 1.0), np.full(36, 1e-3)])  # far apart only in what is projected away
    apart = copying_z(train=train * spread, test=test * spread, generated=(train + 0.5) * spread, cells=1)
    scores = [rows[:, :64] for rows in (train, test, train + 0.5)]
    distances = [cdist(rows, scores[0]).min(axis=1) for rows in scores[1:]]
    u = scipy.stats.mannwhitneyu(distances[1], distances[0]).statistic
    assert apart.cells[0].z == pytest.approx((u - 45_000) / np.sqrt(300 * 300 * 601 / 12), abs=0.1)


def test_cells_are_those_of_k_means() -> None:
    train = clusters(300, 0)
    labels = KMeans(3, n_init=10, random_state=0).fit_predict(train)
    found = copying_z(train=train, test=clusters(300, 1), generated=clusters(300, 2))
    assert [cell.train for cell in found.cells] == sorted(np.bincount(labels), reverse=True)


def test_cosine_distance_agrees_with_torchmetrics() -> None:
    train, generated = np.abs(features(300, 0, dim=16)), np.abs(features(200, 1, dim=16))
    train[7] = generated[3] = 0
    expected = _compute_cosine_distance(torch.from_numpy(generated), torch.from_numpy(train), 1.0)
    found = mean_minimum_cosine_distance(train=train, generated=generated).value
    assert found == pytest.approx(float(expected), rel=1e-10)
    swapped = mean_minimum_cosine_distance(train=generated, generated=train).value
    assert found != pytest.approx(swapped, rel=1e-3)
    copied = mean_minimum_cosine_distance(train=train, generated=-3 * train)
    assert copied.value == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("tau", [1e-3, 0.1, 0.5])
def test_memorization_informed_distance_agrees_with_torchmetrics(tau: float) -> None:
    train = np.abs(features(300, 0, dim=16))
    generated = train[:200] + 0.05 * features(200, 1, dim=16)
    a, b = torch.from_numpy(generated), torch.from_numpy(train)
    moments = [(rows.mean(dim=0), torch.cov(rows.T), rows) for rows in (a, b)]
    fid = float(_mifid_compute(*moments[0], *moments[1], cosine_distance_eps=0.0))
    expected = float(_mifid_compute(*moments[0], *moments[1], cosine_distance_eps=tau))
    found = memorization_informed_fid(Estimate(fid, 0.1), train=train, generated=generated, tau=tau)
    assert found.value == pytest.approx(expected, rel=1e-8)
    assert (found == Estimate(fid, 0.1)) == (tau == 1e-3), "not divided"


def test_memorization_informed_distance_at_its_ends() -> None:
    train = features(50, 0)
    assert memorization_informed_fid(Estimate(0.0, 0.0), train=train, generated=train).value == 0
    assert 1e10 < memorization_informed_fid(Estimate(2.0, 0.1), train=train, generated=train).value < np.inf
    with pytest.raises(ValueError, match="Fréchet distance >= 0, got -1"):
        memorization_informed_fid(Estimate(-1.0, 0.1), train=train, generated=train)
    with pytest.raises(ValueError, match="50 rows of zeros"):
        memorization_informed_fid(Estimate(1.0, 0.1), train=train, generated=np.zeros((50, 6)))
    with pytest.raises(ValueError, match="at least two generated images"):
        memorization_informed_fid(Estimate(1.0, 0.1), train=train, generated=train[:1])


@pytest.mark.parametrize("spread", [0.002, 0.2])
def test_the_error_of_the_memorization_informed_distance_is_that_of_other_draws(spread: float) -> None:
    """With the error of the distance above and below that of the divisor."""
    train, rng = np.abs(features(60, 0, dim=8)), np.random.default_rng(1)
    found = []
    for _ in range(300):
        noise = rng.uniform(0.05, 0.3, (200, 1)) * rng.normal(size=(200, 8))
        generated = train[rng.integers(0, 60, 200)] + noise
        fid = Estimate(2 + spread * rng.normal(), spread)
        found.append(memorization_informed_fid(fid, train=train, generated=generated))
    values = np.array([one.value for one in found])
    assert values.min() > 20, "divided"
    assert np.mean([one.standard_error for one in found]) == pytest.approx(values.std(), rel=0.15)


def test_roles_are_keywords_and_mistakes_are_named() -> None:
    rows = features(30, 0)
    for measure in (authenticity, mean_minimum_cosine_distance, copying_z):
        with pytest.raises(TypeError):
            measure(rows, rows)
    with pytest.raises(ValueError, match="k between 1 and 0"):
        authenticity(train=rows[:1], generated=rows)
    with pytest.raises(ValueError, match="30 training images and 31 cells"):
        copying_z(train=rows, test=rows, generated=rows, cells=31)
    with pytest.raises(ValueError, match=r"\[5, 6\]"):
        copying_z(train=rows, test=rows[:, :5], generated=rows)
