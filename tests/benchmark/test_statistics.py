from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gen_unlearn.benchmark.statistics import holm, paired_p_value, ranking, seed_estimate


def drawn(train: int, unlearn: int, sigma_train: float, sigma_unlearn: float, repeats: int) -> np.ndarray:
    """Return values ``(repeats, train, unlearn)`` of the nested model with mean 0."""
    generator = np.random.default_rng(0)
    effects = sigma_train * generator.standard_normal((repeats, train, 1))
    return effects + sigma_unlearn * generator.standard_normal((repeats, train, unlearn))


def test_agrees_with_scipy_where_there_is_one_unlearning_seed() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 7)
    estimate = seed_estimate([[value] for value in values])
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert estimate.mean - estimate.half_width == pytest.approx(low, abs=1e-12)
    assert estimate.mean + estimate.half_width == pytest.approx(high, abs=1e-12)
    assert estimate.sigma_train == pytest.approx(values.std(ddof=1))
    assert estimate.sigma_unlearn is None


def test_components_by_hand() -> None:
    estimate = seed_estimate([[1.0, 3.0], [5.0, 7.0], [6.0, 8.0]])
    assert (estimate.mean, estimate.seeds) == (5.0, 3)
    assert estimate.sigma_unlearn == pytest.approx(math.sqrt(2))
    assert estimate.sigma_train == pytest.approx(math.sqrt(7 - 1))  # means 2, 6, 7: variance 7; less 2 / 2
    assert estimate.half_width == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(7 / 3))


def test_components_are_recovered_on_average() -> None:
    estimates = [seed_estimate(rows) for rows in drawn(20, 4, 2.0, 1.0, 400)]
    assert np.mean([each.sigma_train**2 for each in estimates]) == pytest.approx(4.0, rel=0.1)
    assert np.mean([each.sigma_unlearn**2 for each in estimates]) == pytest.approx(1.0, rel=0.05)


def test_more_unlearning_seeds_do_not_narrow_what_training_seeds_leave_open() -> None:
    widths = [
        np.mean([seed_estimate(rows).half_width for rows in drawn(5, unlearn, 1.0, 0.2, 200)])
        for unlearn in (1, 50)
    ]
    assert widths[1] > 0.9 * widths[0]


@pytest.mark.parametrize(("train", "unlearn"), [(3, 1), (5, 2), (10, 3)])
def test_interval_holds_the_mean_in_95_of_100_draws(train: int, unlearn: int) -> None:
    values = drawn(train, unlearn, 1.0, 0.7, 20_000)
    factor = seed_estimate(values[0]).half_width / values[0].mean(axis=1).std(ddof=1)  # for all draws alike
    means = values.mean(axis=2)
    covered = np.abs(means.mean(axis=1)) <= factor * means.std(axis=1, ddof=1)
    assert covered.mean() == pytest.approx(0.95, abs=0.02)
    few = [seed_estimate(rows).includes_zero for rows in values[:400]]
    assert few == covered[:400].tolist()


def test_one_training_seed_has_no_interval() -> None:
    estimate = seed_estimate([[1.0, 2.0]])
    assert (estimate.half_width, estimate.sigma_train) == (None, None)
    assert estimate.includes_zero
    for rows, words in (([], "one training seed"), ([[1.0], []], "lengths"), ([[math.nan]], "finite")):
        with pytest.raises(ValueError, match=words):
            seed_estimate(rows)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_values_agree_with_scipy() -> None:
    first, second = np.random.default_rng(2).normal([[0.0], [0.5]], 1.0, (2, 9))
    assert paired_p_value(first - second) == pytest.approx(stats.ttest_rel(first, second).pvalue)
    signed = stats.wilcoxon(first, second).pvalue
    assert paired_p_value(first - second, "wilcoxon") == pytest.approx(signed)
    assert paired_p_value(np.arange(1.0, 6.0), "wilcoxon") == pytest.approx(2**-4)


def test_p_values_of_constant_differences() -> None:
    for test in ("t", "wilcoxon"):
        assert paired_p_value(np.zeros(5), test) == 1.0
    assert paired_p_value(np.full(5, 2.0)) == 0.0
    assert paired_p_value(np.array([0.0, 0.0, 0.0, 1.0, 1.0]), "wilcoxon") > 0.05


def rows(*values: float) -> list[list[float]]:
    return [[value] for value in values]


NOISE = np.array([0.1, -0.1, 0.05, -0.05, 0.0])


def test_ranks_what_differs_and_ties_what_does_not() -> None:
    values = {
        "far": rows(*(9.0 + NOISE[::-1])),
        "near": rows(*(1.0 + NOISE)),
        "like near": rows(*(1.01 - NOISE)),
    }
    ranked = ranking(values, "lower")
    assert ranked.order == ("near", "like near", "far")
    assert ranked.ties == (("near", "like near"), ("far",))
    assert ranked.leaders == ("near", "like near")
    assert ranked.tied_with("far") == ("far",)
    assert ranking(values, "higher").ties == (("far",), ("like near", "near"))


def test_a_tie_is_not_carried_over() -> None:
    """A ties with B and B with C, but A is better than C: two sets, both with B."""
    values = {
        "a": rows(*NOISE),
        "b": rows(*(0.5 + 8 * np.roll(NOISE, 1))),
        "c": rows(*(1 + np.roll(NOISE, 2))),
    }
    ranked = ranking(values, "lower")
    assert ranked.ties == (("a", "b"), ("b", "c"))
    assert ranked.leaders == ("a", "b")


def test_no_method_at_the_floor_is_better_than_another() -> None:
    values = {"a": rows(*NOISE), "b": rows(*(1 + np.roll(NOISE, 1))), "c": rows(*(9 + NOISE[::-1]))}
    assert ranking(values, "lower").ties == (("a",), ("b",), ("c",))
    assert ranking(values, "lower", alike={"a", "b"}).ties == (("a", "b"), ("c",))


def test_pairing_finds_what_the_spread_over_seeds_hides() -> None:
    seeds = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    values = {"a": rows(*(seeds + NOISE)), "b": rows(*(seeds + 1 - NOISE))}
    assert ranking(values, "lower").ties == (("a",), ("b",))


def test_methods_without_a_difference_are_rarely_told_apart() -> None:
    generator = np.random.default_rng(5)
    told = 0
    for _ in range(200):
        values = {str(name): generator.standard_normal((8, 1)) for name in range(5)}
        told += len(ranking(values, "lower").ties) > 1
    assert told <= 22  # 5 % of 200 is 10; 22 is four standard deviations above


def test_refuses_two_training_seeds_however_many_unlearning_seeds() -> None:
    with pytest.raises(ValueError, match="at least 3 training seeds for a ranking, got 2"):
        ranking({"a": [[1.0] * 50] * 2, "b": [[2.0] * 50] * 2}, "lower")
    with pytest.raises(ValueError, match="same training seeds"):
        ranking({"a": rows(1, 2, 3), "b": rows(1, 2, 3, 4)}, "lower")
    with pytest.raises(ValueError, match="one method or more"):
        ranking({}, "lower")
