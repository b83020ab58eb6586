import numpy as np
import pytest

from gen_unlearn.metrics.compatibility import (
    OptmlRow,
    SetAccuracies,
    aus,
    nomus,
    optml_avg_gap,
    optml_avg_gap_floor,
    tow,
    tow_mia,
)

RETRAIN = OptmlRow(ua=5.24, ra=100, ta=94.26, mia=12.88)
PUBLISHED = {
    (0.63, 99.88, 94.06, 2.70): 3.78,
    (7.61, 99.67, 92.83, 37.36): 7.15,
    (0.69, 99.50, 94.01, 1.70): 4.12,
    (1.07, 99.20, 93.20, 2.67): 4.06,
    (4.19, 97.74, 91.59, 9.84): 2.26,
    (4.19, 99.74, 93.44, 19.49): 2.19,
}


def test_average_gap_of_a_published_row() -> None:
    salun = OptmlRow(ua=2.85, ra=99.62, ta=93.93, mia=14.39)
    assert optml_avg_gap(salun, RETRAIN) == pytest.approx(1.1525, abs=1e-9)
    assert optml_avg_gap(RETRAIN, salun) == optml_avg_gap(salun, RETRAIN)
    assert optml_avg_gap(RETRAIN, RETRAIN) == 0


@pytest.mark.parametrize(("cells", "printed"), PUBLISHED.items())
def test_average_gaps_of_a_published_table(cells: tuple[float, ...], printed: float) -> None:
    row = OptmlRow(ua=cells[0], ra=cells[1], ta=cells[2], mia=cells[3])
    assert optml_avg_gap(row, RETRAIN) == pytest.approx(printed, abs=0.0101)


def test_the_floor_is_the_mean_gap_of_two_retrained_models() -> None:
    assert optml_avg_gap_floor(0.42, 0, 0.15, 0.68) == pytest.approx(0.3526, abs=1e-4)
    generator = np.random.default_rng(0)
    rows = 50 + generator.normal(size=(2, 40000, 4)) * [0.42, 0, 0.15, 0.68]
    assert np.abs(rows[0] - rows[1]).mean() == pytest.approx(0.3526, abs=0.003)
    with pytest.raises(ValueError, match=">= 0"):
        optml_avg_gap_floor(-1, 0, 0, 0)


def test_tug_of_war_of_three_gaps() -> None:
    unlearned = SetAccuracies(forget=92, retain=99, test=87)
    retrained = SetAccuracies(forget=90, retain=100, test=90)
    assert tow(unlearned, retrained) == pytest.approx(0.941094, abs=1e-9)
    assert tow(retrained, retrained) == 1
    assert tow_mia(unlearned, retrained, 14, 12) == pytest.approx(0.941094, abs=1e-9)
    assert tow_mia(unlearned, retrained, 12, 12) == pytest.approx(0.99 * 0.97)


def test_adaptive_unlearning_score() -> None:
    assert aus(95, 93, 99, "random") == pytest.approx(0.98 / 1.06)
    assert aus(95, 93, 99, "class") == pytest.approx(0.98 / 1.99)
    assert aus(95, 93, 0, "class") == pytest.approx(0.98)
    assert aus(95, 95, 95, "random") == 1
    with pytest.raises(ValueError, match="setting"):
        aus(95, 93, 0, "homogeneous")  # type: ignore[arg-type]


def test_nomus_is_symmetric_about_chance() -> None:
    assert nomus(90, 50) == pytest.approx(0.95)
    assert nomus(90, 60) == pytest.approx(nomus(90, 40))
    assert nomus(90, 100) == pytest.approx(0.45)
    assert nomus(90, 60, weight=0.25) == pytest.approx(0.225 + 0.75 * 0.8)
    with pytest.raises(ValueError, match="weight"):
        nomus(90, 50, weight=2)


def test_refuses_what_is_no_percentage() -> None:
    with pytest.raises(ValueError, match="ua"):
        OptmlRow(ua=-1, ra=100, ta=90, mia=10)
    with pytest.raises(ValueError, match="test"):
        SetAccuracies(forget=1, retain=1, test=float("nan"))
    with pytest.raises(ValueError, match="attack_accuracy"):
        nomus(90, 101)
