import math

import numpy as np
import pytest
import scipy.stats

from gen_unlearn.metrics.pool_errors import cross_error, energy_error, floor_error, pair_mean


def additive(effects: np.ndarray, others: np.ndarray) -> np.ndarray:
    return 5 + effects[:, None] + others[None, :]


def within(effects: np.ndarray) -> np.ndarray:
    distances = additive(effects, effects)
    np.fill_diagonal(distances, 0)
    return distances


@pytest.mark.parametrize(("models", "retrained"), [(3, 3), (4, 6), (7, 3), (5, 5)])
def test_additive_distances_give_variances_of_means(models: int, retrained: int) -> None:
    rng = np.random.default_rng([models, retrained])
    a, q, b, p = (rng.normal(size=count) for count in (models, models, retrained, retrained))
    assert pair_mean(within(p)) == pytest.approx(5 + 2 * p.mean())
    assert cross_error(additive(a, b)) == pytest.approx(math.hypot(scipy.stats.sem(a), scipy.stats.sem(b)))
    expected = 2 * math.hypot(scipy.stats.sem(a - q), scipy.stats.sem(b - p))
    assert energy_error(additive(a, b), within(q), within(p)) == pytest.approx(expected)


def test_two_models_borrow_from_the_distances_across() -> None:
    a, b = np.array([0.3, -0.4]), np.array([1.0, 0.2])
    assert floor_error(additive(a, b), within(b)) == pytest.approx(math.sqrt(2 * b.var(ddof=1)))
    assert energy_error(additive(a, b), within(a), within(b)) == pytest.approx(
        2 * math.hypot(scipy.stats.sem(a), scipy.stats.sem(b))
    )


def test_equal_distances_have_no_error() -> None:
    for count in (2, 3, 5):
        to, own = np.full((count, count), 0.25), 0.25 * (1 - np.eye(count))
        assert cross_error(to) == floor_error(to, own) == energy_error(to, own, own) == 0


def test_the_error_is_that_of_pure_interactions() -> None:
    rng = np.random.default_rng(0)
    values, stated = [], []
    for _ in range(2000):
        to, own, between = (rng.normal(size=(5, 5)) for _ in range(3))
        own, between = (np.triu(each, 1) + np.triu(each, 1).T for each in (own, between))
        values.append(2 * to.mean() - pair_mean(own) - pair_mean(between))
        stated.append(energy_error(to, own, between) ** 2)
    assert math.sqrt(np.mean(stated)) == pytest.approx(np.std(values), rel=0.25)
