"""Cost curves: exponents are those of power laws, and curves are written and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.cost_curves import Curve, fitted_exponent, write_curves

SIZES = (4, 8, 16, 32, 64, 128)


def curve(variable: str, exponent: float) -> Curve:
    seconds = tuple(0.01 * size**exponent for size in SIZES)
    return Curve(variable, "work", SIZES, seconds, tuple(1000 * size for size in SIZES), "arrays")


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(exponent: float) -> None:
    found = fitted_exponent(SIZES, [7 * size**exponent for size in SIZES])
    assert (found.value, found.standard_error) == (
        pytest.approx(exponent, abs=1e-12),
        pytest.approx(0, abs=1e-7),
    )


def test_its_standard_error_is_that_of_least_squares() -> None:
    draws = np.random.default_rng(0)
    x = np.log(SIZES)
    fits = [fitted_exponent(SIZES, np.exp(x + 0.1 * draws.standard_normal(6)).tolist()) for _ in range(4000)]
    assert np.std([fit.value for fit in fits]) == pytest.approx(0.1 / (np.std(x) * 6**0.5), rel=0.05)
    squares = np.mean([fit.standard_error**2 for fit in fits])
    assert squares**0.5 == pytest.approx(0.1 / (np.std(x) * 6**0.5), rel=0.05)


def test_curves_are_written_with_their_exponents_and_drawn(tmp_path: Path) -> None:
    write_curves([curve("images", 0.0), curve("images", 1.0), curve("adapters", 0.5)], tmp_path)
    written = json.loads((tmp_path / "cost_curves.json").read_text(encoding="utf-8"))["curves"]
    assert [round(each["time_exponent"]["value"], 6) for each in written] == [0.0, 1.0, 0.5]
    assert {round(each["memory_exponent"]["value"], 6) for each in written} == {1.0}
    with Image.open(tmp_path / "cost_curves.png") as picture:
        assert picture.width > picture.height > 500
