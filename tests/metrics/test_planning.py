import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from gen_unlearn.metrics.planning import detectable_difference, images_needed, training_seeds_needed


@pytest.mark.parametrize(("difference", "expected"), [(0.5, 5_000), (0.2, 32_000), (0.1, 127_000)])
def test_plans_the_numbers_of_the_specification(difference: float, expected: int) -> None:
    kappa, images = 9.0, 2_000
    assert images_needed(difference, kappa / math.sqrt(images), images) == pytest.approx(expected, rel=0.02)


def test_plans_trainings() -> None:
    assert training_seeds_needed(0.5, 0.2) == 3
    assert training_seeds_needed(0.2, 0.2) == 16
    assert training_seeds_needed(5.0, 0.2) == 2  # a spread over seeds cannot be told from one


@pytest.mark.parametrize(("power", "level"), [(0.8, 0.05), (0.95, 0.01)])
def test_the_planned_test_has_the_planned_power(power: float, level: float) -> None:
    kappa, difference, trials = 2.0, 0.8, 20_000
    count = images_needed(difference, kappa / math.sqrt(40), 40, power, level)
    rng = np.random.default_rng(0)

    def share_found(truth: float) -> float:
        first, second = (
            np.concatenate([rng.normal(mean, kappa, (500, count)).mean(axis=1) for _ in range(trials // 500)])
            for mean in (truth, 0.0)
        )
        z = np.abs(first - second) / (kappa * math.sqrt(2 / count))
        return float((z > norm.ppf(1 - level / 2)).mean())

    assert share_found(difference) == pytest.approx(power, abs=0.015)
    assert share_found(0.0) == pytest.approx(level, abs=0.006)


def test_the_detectable_difference_is_the_inverse() -> None:
    for planned in (100, 5_000, 80_000):
        found = detectable_difference(0.2, 2_000, planned=planned)
        assert images_needed(found * (1 + 1e-9), 0.2, 2_000) == planned
        assert images_needed(found * (1 - 1e-9), 0.2, 2_000) == planned + 1
    assert detectable_difference(0.2, 2_000) == pytest.approx(2.8 * 0.2 * math.sqrt(2), rel=1e-3)
    assert detectable_difference(0.2, 2_000, 0.9, 0.01) > detectable_difference(0.2, 2_000, 0.9, 0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"difference": 0.0}, "positive, finite difference, got 0.0"),
        ({"standard_error": math.nan}, "positive, finite standard_error, got nan"),
        ({"images": 0}, "positive, finite images, got 0"),
        ({"power": 1.0}, "level 0.05 and power 1.0"),
        ({"level": 0.9}, "level 0.9 and power 0.8"),
        ({"level": 0.0}, "level 0.0 and power 0.8"),
    ],
)
def test_refuses_what_cannot_be_planned(changes: dict[str, Any], message: str) -> None:
    plan: dict[str, Any] = {"difference": 0.5, "standard_error": 0.2, "images": 2_000}
    with pytest.raises(ValueError, match=message):
        images_needed(**plan | changes)


def test_refuses_impossible_plans_everywhere() -> None:
    with pytest.raises(ValueError, match="planned, got -1"):
        detectable_difference(0.2, 2_000, planned=-1)
    with pytest.raises(ValueError, match="sd_over_seeds, got 0"):
        training_seeds_needed(0.5, 0.0)
