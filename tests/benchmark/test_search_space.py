from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gen_unlearn.methods.search_space import Choice, IntegerRange, LogitUniform, LogUniform, sample_settings

SPACE = {
    "lr": LogUniform(1e-5, 1e-1),
    "alpha": LogitUniform(0.5, 0.9999),
    "batch": Choice((64, 128, 256)),
    "epochs": IntegerRange(1, 10),
}


def test_the_first_trial_takes_the_defaults() -> None:
    settings = sample_settings(SPACE, 30, seed=0, name="scrub")
    assert len(settings) == 30
    assert settings[0] == {}
    assert all(set(each) == set(SPACE) for each in settings[1:])


def test_draws_depend_on_seed_and_method_and_nothing_else() -> None:
    settings = sample_settings(SPACE, 10, seed=0, name="scrub")
    assert sample_settings(dict(reversed(SPACE.items())), 10, seed=0, name="scrub") == settings
    assert sample_settings(SPACE, 30, seed=0, name="scrub")[:10] == settings
    fewer = sample_settings({"lr": SPACE["lr"]}, 10, seed=0, name="scrub")
    assert [each["lr"] for each in fewer[1:]] == [each["lr"] for each in settings[1:]]
    assert sample_settings(SPACE, 10, seed=1, name="scrub") != settings
    assert sample_settings(SPACE, 10, seed=0, name="ssd") != settings


def test_draws_follow_their_distributions() -> None:
    drawn = sample_settings(SPACE, 2001, seed=3, name="any")[1:]
    lr = np.log10([each["lr"] for each in drawn])
    assert stats.kstest(lr, stats.uniform(-5, 4).cdf).pvalue > 1e-3
    alpha = np.array([each["alpha"] for each in drawn])
    high = np.log(0.9999 / 0.0001)
    assert stats.kstest(np.log(alpha / (1 - alpha)), stats.uniform(0, high).cdf).pvalue > 1e-3
    for field, values in (("batch", [64, 128, 256]), ("epochs", list(range(1, 11)))):
        counts = [sum(each[field] == value for each in drawn) for value in values]
        assert sum(counts) == 2000
        assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("space", [LogUniform(1e-5, 1e-1), LogitUniform(0.5, 0.9999), IntegerRange(2, 4)])
def test_bounds_hold_at_both_ends(space: LogUniform) -> None:
    assert space.at(0.0) == pytest.approx(space.low)
    assert space.low <= space.at(0.0)
    assert space.low <= space.at(1 - 2**-53) <= space.high


def test_a_method_without_a_choice_has_one_trial() -> None:
    assert sample_settings({}, 30, seed=0, name="plain") == [{}]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="at least 1 trial, got 0"):
        sample_settings(SPACE, 0, seed=0, name="scrub")
    for kind, low, high in ((LogUniform, 0.0, 1.0), (LogUniform, 1.0, 1.0), (LogitUniform, 0.5, 1.0)):
        with pytest.raises(ValueError, match="low < high"):
            kind(low, high)
    with pytest.raises(ValueError, match="one value or more"):
        Choice(())
    with pytest.raises(ValueError, match="low <= high"):
        IntegerRange(3, 2)
    with pytest.raises(ValueError, match="whole numbers"):
        IntegerRange(1, 2.5)
