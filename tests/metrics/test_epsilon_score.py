"""Tests of the score of the unlearning challenge, against its definition and on normal margins."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from gen_unlearn.metrics.epsilon_score import (
    Attacks,
    attack_epsilons,
    epsilon_bins,
    epsilon_score,
    epsilons,
    qualities,
)


def pools(shift: float, models: int, images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw standard normal margins of two pools, the first moved by `shift`."""
    unlearned, retrained = np.random.default_rng(seed).normal(size=(2, models, images))
    return unlearned + shift, retrained


def explicit_epsilon(unlearned: np.ndarray, retrained: np.ndarray, attacks: Attacks) -> float:
    """Try all attacks on one image one by one, with thresholds between its distinct margins."""
    values = np.unique(np.concatenate([unlearned, retrained]))
    cuts = [-math.inf, *((values[1:] + values[:-1]) / 2), math.inf]
    pairs = itertools.combinations(cuts, 2) if attacks == "double" else [(-math.inf, cut) for cut in cuts]
    best = 0.0
    for low, high in pairs:
        inside = [(pool > low) & (pool < high) for pool in (unlearned, retrained)]
        for u, r in (inside, [~side for side in inside]):
            fpr, fnr = r.mean(), 1 - u.mean()
            if fpr == 0 and fnr == 0:
                return math.inf
            if fpr > 0 and fnr > 0:
                for one, other in ((fpr, fnr), (fnr, fpr)):
                    if 1 - 1e-5 - one > 0:
                        best = max(best, math.log(1 - 1e-5 - one) - math.log(other))
    return best


def test_worked_example_takes_the_larger_branch() -> None:
    found = attack_epsilons(np.array([0.1, 0.2]), np.array([0.2, 0.1]))
    np.testing.assert_allclose(found, 2.079429, atol=1e-6)
    assert epsilon_bins(found).tolist() == [5, 5]
    assert qualities(found).tolist() == [0.0625, 0.0625]


def test_rates_of_zero() -> None:
    found = attack_epsilons(np.array([0.0, 0.0, 0.3, 1.0]), np.array([0.0, 0.3, 0.0, 1.0]))
    assert found.tolist() == [math.inf, -math.inf, -math.inf, -math.inf]


def test_bins_and_qualities() -> None:
    values = np.array([0.0, 0.49, 0.5, 5.99, 6.0, 40.0, math.inf])
    assert epsilon_bins(values).tolist() == [1, 1, 2, 12, 13, 13, 13]
    np.testing.assert_array_equal(qualities(values[[0, 2, -1]]), [1.0, 0.5, 2.0**-12])


@pytest.mark.parametrize("attacks", ["single", "double"])
@pytest.mark.parametrize("sizes", [(6, 6), (5, 9)])
def test_equals_explicit_attacks_with_ties(attacks: Attacks, sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    unlearned, retrained = (generator.integers(0, 12, (size, 60)).astype(float) for size in sizes)
    unlearned[:, 50:] = generator.normal(0.5, 0.3, (sizes[0], 10))
    unlearned[:, 59] = 50.0
    expected = [explicit_epsilon(u, r, attacks) for u, r in zip(unlearned.T, retrained.T, strict=True)]
    np.testing.assert_allclose(epsilons(unlearned, retrained, attacks), expected)
    assert math.isinf(expected[-1])
    assert len(set(expected)) > 4


def test_intervals_find_what_half_lines_do_not() -> None:
    retrained = np.concatenate([np.linspace(-3, -1, 20), np.linspace(1, 3, 20)])[:, None]
    unlearned = np.linspace(-0.5, 0.5, 40)[:, None]
    assert epsilons(unlearned, retrained, "single")[0] == pytest.approx(math.log(20), abs=1e-3)
    assert math.isinf(epsilons(unlearned, retrained, "double")[0])
    assert math.isinf(epsilons(retrained, unlearned, "double")[0])


@pytest.mark.parametrize(
    ("attacks", "models", "images", "expected"),
    [
        ("single", 64, 3_000, 0.22),
        ("single", 128, 3_000, 0.22),
        ("double", 32, 1_500, 0.090),
        ("double", 64, 600, 0.066),
        ("double", 128, 300, 0.056),
    ],
)
def test_null_of_normal_pools(attacks: Attacks, models: int, images: int, expected: float) -> None:
    found = epsilon_score(*pools(0.0, models, images), 1.0, 1.0, attacks)
    assert found.quality.value == pytest.approx(expected, abs=0.01)


def test_score_multiplies_ratios() -> None:
    result = epsilon_score(*pools(1.0, 32, 500), retain_ratio=0.9, test_ratio=0.8)
    assert result.score.value == pytest.approx(result.quality.value * 0.72)
    assert result.score.standard_error == pytest.approx(result.quality.standard_error * 0.72)
    null = epsilon_score(*pools(0.0, 32, 500), 1.0, 1.0)
    assert result.quality.value < null.quality.value / 2
    assert result.median_epsilon > null.median_epsilon == pytest.approx(1.386, abs=0.01)


def test_pools_without_attacks_and_with_perfect_ones() -> None:
    equal = epsilon_score(np.ones((4, 3)), np.ones((4, 3)), 1.0, 1.0)
    assert (equal.quality.value, equal.median_epsilon) == (1.0, 0.0)
    apart = epsilon_score(np.ones((4, 3)), np.zeros((4, 3)), 1.0, 1.0)
    assert apart.quality.value == 2.0**-12
    assert json.loads(json.dumps(apart.as_dict()))["median_epsilon"] is None


def test_wrong_arguments_raise() -> None:
    margins = np.zeros((4, 3))
    with pytest.raises(ValueError, match="expected attacks"):
        epsilons(margins, margins, attacks="triple")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="delta"):
        epsilons(margins, margins, delta=1.0)
    with pytest.raises(ValueError, match="ratios"):
        epsilon_score(margins, margins, math.nan, 1.0)
    with pytest.raises(ValueError, match="error rates"):
        attack_epsilons(np.array([1.5]), np.array([0.5]))
    with pytest.raises(ValueError, match="epsilons >= 0"):
        epsilon_bins(np.array([-0.5]))
    with pytest.raises(ValueError, match="two images"):
        epsilon_score(margins[:, :1], margins[:, :1], 1.0, 1.0)
