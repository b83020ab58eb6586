import numpy as np
import pytest

from gen_unlearn.metrics.gap import RetrainGap, retrain_gap

SAMPLING = 0.7
SCALES = np.linspace(0.5, 1.5, 8)


def seeds(rng: np.random.Generator, count: int, tail: float) -> np.ndarray:
    """Draw what training seeds add to a model, ``(count, 8)``; a finite tail makes some seeds go far off."""
    return rng.normal(size=(count, 8)) * SCALES * np.sqrt(tail / rng.chisquare(tail, size=(count, 1)))


def simulate(
    count: int, shift: float, runs: int, tail: float = 1e9, retrained: bool = False
) -> list[RetrainGap]:
    """Measure the squared distance from a model, fixed or retrained each time, to oracles drawn each time."""
    rng = np.random.default_rng([count, runs, int(shift)])
    found = []
    for _ in range(runs):
        oracles = seeds(rng, count, tail)
        model = seeds(rng, 1, tail)[0] if retrained else np.zeros(8)
        model = model + shift * np.eye(8)[0]
        to = np.square(model - oracles).sum(axis=1) + SAMPLING * rng.normal()
        between = np.square(oracles[:, None] - oracles[None, :]).sum(axis=-1)
        found.append(retrain_gap(to, between, SAMPLING))
    return found


def gaps(found: list[RetrainGap]) -> np.ndarray:
    return np.array([one.gap.value for one in found])


def claimed(found: list[RetrainGap]) -> float:
    """Return the root of the mean variance that the gaps state."""
    return float(np.sqrt(np.mean([one.gap.standard_error**2 for one in found])))


@pytest.mark.parametrize("count", [3, 4, 5])
@pytest.mark.parametrize("shift", [0.0, 5.0])
@pytest.mark.parametrize("tail", [1e9, 10.0])
def test_the_error_is_that_of_other_oracles(count: int, shift: float, tail: float) -> None:
    found = simulate(count, shift, runs=1500, tail=tail)
    assert claimed(found) == pytest.approx(gaps(found).std(), rel=0.15)
    spread = np.std([one.floor.value for one in found])
    stated = np.sqrt(np.mean([one.floor.standard_error**2 for one in found]))
    assert stated == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_another_retraining_has_no_gap_and_a_shift_is_found(count: int) -> None:
    if count == 1:  # the oracle against itself has no seed noise, and is not a floor for retraining
        assert "without the noise of training" in retrain_gap([4.0], [[1.0]], 0.1).note
        return
    for shift in (0.0, 3.0):
        found = gaps(simulate(count, shift, runs=1500, retrained=True))
        assert abs(found.mean() - shift**2) < 4 * found.std() / np.sqrt(len(found))


@pytest.mark.parametrize("count", [3, 4, 5])
def test_the_spread_is_that_of_other_retrainings(count: int) -> None:
    found = simulate(count, 0.0, runs=1500, retrained=True)
    stated = np.sqrt(
        np.mean([one.retraining_spread**2 for one in found if one.retraining_spread is not None])
    )
    assert np.hypot(stated, SAMPLING) == pytest.approx(gaps(found).std(), rel=0.15)
    assert claimed(found) < 0.95 * gaps(found).std(), "the error of the gap leaves out the model's own seed"


def test_the_error_of_two_oracles_fits_a_retraining_and_is_too_large_for_a_far_model() -> None:
    near = simulate(2, 0.0, runs=3000, retrained=True)
    assert claimed(near) == pytest.approx(gaps(near).std(), rel=0.15)
    far = simulate(2, 12.0, runs=3000)
    assert gaps(far).std() < claimed(far) < 2 * gaps(far).std()
    assert "two oracles" in near[0].note
    assert near[0].retraining_spread is None


def test_means_by_hand_whatever_the_diagonal() -> None:
    between = np.array([[9.0, 1.0, 2.0], [1.0, np.nan, 6.0], [2.0, 6.0, -1.0]])
    found = retrain_gap([5.0, 7.0, 9.0], between.tolist(), 0.0)
    assert (found.distance.value, found.floor.value, found.gap.value) == (7.0, 3.0, 4.0)
    assert found.distance.standard_error == pytest.approx(2 / np.sqrt(3))
    assert found.oracles == 3


def test_one_and_two_oracles_by_hand() -> None:
    one = retrain_gap([5.0], [[2.0]], 0.3)
    assert (one.distance.value, one.floor.value, one.gap.value, one.oracles) == (5.0, 2.0, 3.0, 1)
    assert one.gap.standard_error == pytest.approx(0.3 * np.sqrt(2))
    two = retrain_gap([5.0, 7.0], [[0.0, 2.0], [2.0, 0.0]], 1.0)
    assert (two.distance.value, two.floor.value, two.gap.value) == (6.0, 2.0, 4.0)
    assert two.floor.standard_error == pytest.approx(np.sqrt(2))
    assert two.gap.standard_error == pytest.approx(np.sqrt(3 + 1))
    assert two.distance.standard_error == pytest.approx(np.sqrt(1 + 1))


def test_equal_distances_leave_the_sampling_error() -> None:
    found = retrain_gap([5.0] * 4, np.full((4, 4), 2.0), 0.25)
    assert found.gap.value == 3.0
    assert found.gap.standard_error == pytest.approx(0.25)
    assert found.floor.standard_error == found.retraining_spread == 0


@pytest.mark.parametrize("count", [3, 4, 6])
def test_additive_distances_give_the_variance_of_a_mean(count: int) -> None:
    effects = np.random.default_rng(count).normal(size=count)
    between = 10 + effects[:, None] + effects[None, :]
    found = retrain_gap(20 + effects, between, 0.0)  # the gap is 10 minus the mean effect
    assert found.gap.standard_error == pytest.approx(effects.std(ddof=1) / np.sqrt(count))
    assert found.floor.standard_error == pytest.approx(2 * effects.std(ddof=1) / np.sqrt(count))


def test_refuses_what_is_no_set_of_distances() -> None:
    lopsided = np.array([[0.0, 1.0], [2.0, 0.0]])
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(2, 2\)"):
        retrain_gap([1.0, 2.0, 3.0], lopsided, 0.1)
    with pytest.raises(ValueError, match="symmetric"):
        retrain_gap([1.0, 2.0], lopsided, 0.1)
    with pytest.raises(ValueError, match="finite distances"):
        retrain_gap([1.0, np.nan], np.ones((2, 2)), 0.1)
    with pytest.raises(ValueError, match="sampling error"):
        retrain_gap([1.0, 2.0], np.ones((2, 2)), -0.1)
