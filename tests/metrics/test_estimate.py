import json
import math

import pytest

from gen_unlearn.metrics.estimate import Estimate, proportion


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.83, 0.41, "12.8 ± 0.4"),
        (0.98712, 0.00402, "0.987 ± 0.004"),
        (0.51, 0.096, "0.5 ± 0.1"),
        (12.6, 1.4, "13 ± 1"),
        (5023.4, 123.4, "5023 ± 123"),
        (9.87, 0.96, "10 ± 1"),
        (2.5, 0.0, "2.5 ± 0"),
    ],
)
def test_formats_to_the_precision_of_the_error(value: float, error: float, text: str) -> None:
    assert str(Estimate(value, error)) == text


@pytest.mark.parametrize(("value", "error"), [(math.nan, 1.0), (1.0, math.inf), (1.0, -0.1)])
def test_refuses_what_is_no_measurement(value: float, error: float) -> None:
    with pytest.raises(ValueError, match="expected a finite value"):
        Estimate(value, error)


def test_is_json_and_scales() -> None:
    assert json.loads(json.dumps(Estimate(1.0, 0.5).as_dict())) == {"value": 1.0, "standard_error": 0.5}
    assert Estimate(2.0, 0.5).scaled(-2) == Estimate(-4.0, 1.0)


def test_proportion_is_binomial_between_the_ends() -> None:
    for trials in (2, 5, 100, 10_000):
        for successes in {1, trials // 2, trials - 1}:
            share = successes / trials
            expected = math.sqrt(share * (1 - share) / trials)
            assert proportion(successes, trials) == Estimate(share, expected)


@pytest.mark.parametrize("trials", [1, 10, 1000])
def test_proportion_never_claims_certainty(trials: int) -> None:
    assert proportion(0, trials) == Estimate(0.0, 1 / (trials + 1))
    assert proportion(trials, trials) == Estimate(1.0, 1 / (trials + 1))


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 4), (5, 4)])
def test_proportion_refuses_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"got {successes} of {trials}"):
        proportion(successes, trials)
