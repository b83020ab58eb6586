import itertools
import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats

from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.prediction_gap import (
    MODEL_PROBABILITY_FLOOR,
    Distance,
    PredictionGap,
    compare_with_retrained,
    disagreements_per_image,
    js_per_image,
    kl_per_image,
)

P = np.array([[0.7, 0.2, 0.1]] * 2)
Q = np.array([[0.5, 0.3, 0.2]] * 2)
IMAGES, CLASSES = 20, 3
MEASURES = (disagreements_per_image, kl_per_image, js_per_image)
TASK = np.random.default_rng(3).normal(size=(IMAGES, CLASSES)) * 2
FACTORS = np.random.default_rng(4).normal(size=(3, IMAGES, CLASSES))


def pool(
    rng: np.random.Generator, count: int, shift: float = 0.0, common: float = 0.1, own: float = 1.0
) -> list[np.ndarray]:
    """Draw models: seeds act on all images through few factors, and on each image by itself."""
    logits = TASK + common * np.einsum("ms,snk->mnk", rng.normal(size=(count, 3)), FACTORS)
    logits = logits + own * rng.normal(size=logits.shape)
    logits[:, :, 0] -= shift
    return list(scipy.special.softmax(logits, axis=2))


def slow_distance(u: np.ndarray, r: np.ndarray, distance: Distance) -> float:
    """Compute the distance with SciPy, one image at a time."""
    total = 0.0
    for mine, other in zip(u, r, strict=True):
        if distance == "disagreement":
            total += list(mine).index(max(mine)) != list(other).index(max(other))
        elif distance == "js":
            total += scipy.spatial.distance.jensenshannon(mine, other) ** 2
        else:
            total += scipy.stats.entropy(other, mine)
    return total / len(u)


def energy(found: PredictionGap) -> Estimate:
    assert found.energy is not None
    return found.energy


def floor(found: PredictionGap) -> Estimate:
    assert found.floor is not None
    return found.floor


def test_values_by_hand() -> None:
    assert kl_per_image(Q, P) == pytest.approx(0.085123, abs=5e-7)
    assert kl_per_image(P, Q) == pytest.approx(0.092033, abs=5e-7)
    assert js_per_image(P, Q) == pytest.approx(0.021901, abs=5e-7)


def test_a_model_has_no_distance_to_itself() -> None:
    model = pool(np.random.default_rng(0), 1)[0]
    for measure in MEASURES:
        np.testing.assert_array_equal(measure(model, model), 0)


def test_agrees_with_scipy() -> None:
    u, r = pool(np.random.default_rng(1), 2)
    np.testing.assert_allclose(kl_per_image(u, r), scipy.stats.entropy(r, u, axis=1), atol=1e-14)
    halves = np.array([scipy.spatial.distance.jensenshannon(a, b) ** 2 for a, b in zip(u, r, strict=True)])
    np.testing.assert_allclose(js_per_image(u, r), halves, atol=1e-14)
    differ = disagreements_per_image(u, r)
    assert differ.dtype == bool
    np.testing.assert_array_equal(differ, u.argmax(1) != r.argmax(1))


def test_the_largest_distances() -> None:
    one, other = np.eye(3)[[0, 1]], np.eye(3)[[1, 2]]
    assert disagreements_per_image(one, other).all()
    assert js_per_image(one, other) == pytest.approx(math.log(2))
    assert kl_per_image(one, other) == pytest.approx(-math.log(MODEL_PROBABILITY_FLOOR))


def test_a_lost_class_costs_what_the_floor_says() -> None:
    lost, full = np.array([[0.0, 0.4, 0.6]] * 2), np.array([[0.5, 0.2, 0.3]] * 2)
    expected = 0.5 * math.log(0.5 / 1e-12) + 0.5 * math.log(0.5)
    assert kl_per_image(lost, full) == pytest.approx(expected)
    assert kl_per_image(full, lost) == pytest.approx(math.log(2))
    tiny = np.array([[5e-324, 1.0, 0.0]] * 2)
    assert np.isfinite(js_per_image(tiny, lost)).all()
    np.testing.assert_array_equal(js_per_image(tiny, np.eye(3)[[1, 1]]), 0)


def test_the_first_of_equally_probable_classes_counts() -> None:
    tied, first, second = np.full((2, 3), 1 / 3), np.eye(3)[[0, 0]], np.eye(3)[[1, 1]]
    assert not disagreements_per_image(tied, first).any()
    assert disagreements_per_image(tied, second).all()


def test_half_precision_is_normalised() -> None:
    u, r = pool(np.random.default_rng(2), 2)
    coarse = u.astype(np.float16)
    assert js_per_image(coarse, r).dtype == np.float64
    exact = coarse.astype(np.float64) / coarse.astype(np.float64).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(kl_per_image(coarse, r), scipy.stats.entropy(r, exact, axis=1), atol=1e-14)
    np.testing.assert_allclose(js_per_image(u, r), js_per_image(r, u), atol=1e-16)


@pytest.mark.parametrize("distance", get_args(Distance))
@pytest.mark.parametrize(("models", "retrained"), [(2, 2), (3, 4), (5, 2)])
def test_agrees_with_loops_over_pairs(distance: Distance, models: int, retrained: int) -> None:
    rng = np.random.default_rng([models, retrained])
    us, rs = pool(rng, models, shift=1.0), pool(rng, retrained)
    found = compare_with_retrained(us, rs, distance)
    assert (found.distance, found.models, found.retrained) == (distance, models, retrained)
    across = np.mean([slow_distance(u, r, distance) for u in us for r in rs])
    within = [
        np.mean([slow_distance(a, b, distance) for a, b in itertools.permutations(some, 2)])
        for some in (us, rs)
    ]
    assert found.to_retrained.value == pytest.approx(across)
    assert floor(found).value == pytest.approx(within[1])
    pairs = [[slow_distance(u, r, distance) for r in rs] for u in us]
    np.testing.assert_allclose(found.pairs, pairs, rtol=1e-9)
    both = np.array([[slow_distance(a, b, distance) if a is not b else 0.0 for a in rs] for b in rs])
    np.testing.assert_allclose(found.retrained_pairs, (both + both.T) / 2, rtol=1e-9)
    if distance == "kl":
        assert found.energy is None
    else:
        assert energy(found).value == pytest.approx(2 * across - sum(within))


def test_the_energy_of_disagreement_is_that_of_class_counts() -> None:
    rng = np.random.default_rng(5)
    us, rs = pool(rng, 6, shift=1.0), pool(rng, 4)
    found = compare_with_retrained(us, rs, "disagreement")
    first, second = (sum(np.eye(CLASSES)[p.argmax(1)] for p in some) for some in (us, rs))
    own = (first * (first - 1) / 30 + second * (second - 1) / 12).sum(axis=1)
    per_image = own - 2 * (first * second).sum(axis=1) / 24  # an unbiased estimate of |P_U - P_R|^2
    assert energy(found).value == pytest.approx(per_image.mean())
    assert found.image_error == pytest.approx(scipy.stats.sem(per_image))


def left_out(us: list[np.ndarray], rs: list[np.ndarray], distance: Distance) -> tuple[list, list]:
    def value(u: list[np.ndarray], r: list[np.ndarray]) -> float:
        return energy(compare_with_retrained(u, r, distance)).value

    return (
        [value(us[:i] + us[i + 1 :], rs) for i in range(len(us))],
        [value(us, rs[:j] + rs[j + 1 :]) for j in range(len(rs))],
    )


def additive_rest(some: list[np.ndarray]) -> float:
    """Return the residual variance of a least-squares fit of one effect per model to all pair distances."""
    pairs = list(itertools.combinations(range(len(some)), 2))
    design = np.array([[float(k in pair) for k in range(len(some))] for pair in pairs])
    distances = np.array([js_per_image(some[i], some[j]).mean() for i, j in pairs])
    fitted = design @ np.linalg.lstsq(design, distances, rcond=None)[0]
    return float(np.square(distances - fitted).sum()) / (len(pairs) - len(some))


@pytest.mark.parametrize(
    ("models", "retrained", "shift"), [(3, 5, 0.0), (4, 3, 3.0), (4, 4, 0.0), (5, 6, 2.0)]
)
def test_the_error_is_the_jackknife_less_its_bias(models: int, retrained: int, shift: float) -> None:
    rng = np.random.default_rng([models, retrained])
    us, rs = pool(rng, models, shift, common=0.5), pool(rng, retrained, common=0.5)
    to = np.array([[js_per_image(u, r).mean() for r in rs] for u in us])
    rest = to - to.mean(0) - to.mean(1)[:, None] + to.mean()
    pure = (rest**2).sum() / ((models - 1) * (retrained - 1))
    jackknife = sum((len(v) - 1) * np.var(v) for v in left_out(us, rs, "js"))
    bias = true = 4 * pure / (models * retrained)
    for some in (us, rs):
        count = len(some)
        own = additive_rest(some) if count > 3 else pure
        bias += 2 * own / ((count - 1) * (count - 2))
        true += 2 * own / (count * (count - 1))
    expected = max(jackknife - bias, jackknife * true / (true + bias))
    found = energy(compare_with_retrained(us, rs, "js"))
    assert found.standard_error == pytest.approx(math.sqrt(expected))


def repeat(count: int, runs: int, distance: Distance, **seeds: float) -> list[PredictionGap]:
    rng = np.random.default_rng([count, runs])
    return [
        compare_with_retrained(pool(rng, count, **seeds), pool(rng, count, **seeds), distance)
        for _ in range(runs)
    ]


def calibration(found: list[PredictionGap], part: Callable[[PredictionGap], Estimate]) -> float:
    """Return the stated error over the true one."""
    stated = np.mean([part(one).standard_error ** 2 for one in found])
    return float(np.sqrt(stated) / np.std([part(one).value for one in found]))


@pytest.mark.parametrize("distance", ["disagreement", "js"])
@pytest.mark.parametrize(("count", "common"), [(2, 0.1), (3, 0.1), (5, 0.1), (4, 1.0)])
def test_a_perfect_method_has_no_energy(distance: Distance, count: int, common: float) -> None:
    found = repeat(count, 240 if count < 5 else 100, distance, common=common)
    values = np.array([energy(one).value for one in found])
    assert abs(values.mean()) < 4 * scipy.stats.sem(values)
    assert (values < 0).any()
    widest = 1.25 if count == 5 else 1.6
    assert 0.8 < calibration(found, energy) < widest
    assert 0.8 < calibration(found, lambda one: one.to_retrained) < 1.35
    assert 0.8 < calibration(found, floor) < 1.4
    to, between = (np.array([part(one).value for one in found]) for part in (lambda o: o.to_retrained, floor))
    assert abs((to - between).mean()) < 4 * scipy.stats.sem(to - between)


@pytest.mark.parametrize("distance", ["disagreement", "js"])
def test_shifted_and_collapsed_models_are_found(distance: Distance) -> None:
    rng = np.random.default_rng(8)
    rs = pool(rng, 8)
    shifted = energy(compare_with_retrained(pool(rng, 5, shift=6.0), rs, distance))
    assert shifted.value > 4 * shifted.standard_error
    found = compare_with_retrained(pool(rng, 5, common=0.0, own=0.01), rs, distance)
    assert energy(found).value > 2 * energy(found).standard_error
    assert found.to_retrained.value < floor(found).value, "nearer than retrained models, not better"


@pytest.mark.parametrize("distance", ["disagreement", "js"])
def test_symmetric_and_blind_to_order(distance: Distance) -> None:
    rng = np.random.default_rng(9)
    us, rs = pool(rng, 3, shift=1.0), pool(rng, 4)
    found = compare_with_retrained(us, rs, distance)
    swapped = compare_with_retrained(rs, us, distance)
    images = rng.permutation(IMAGES)
    moved = compare_with_retrained([u[images] for u in us[::-1]], [r[images] for r in rs[::-1]], distance)
    for other in (swapped, moved):
        assert energy(other).value == pytest.approx(energy(found).value)
        assert energy(other).standard_error == pytest.approx(energy(found).standard_error)
        assert other.to_retrained.value == pytest.approx(found.to_retrained.value)
        assert other.to_retrained.standard_error == pytest.approx(found.to_retrained.standard_error)
        assert other.image_error == pytest.approx(found.image_error)
    assert floor(moved).standard_error == pytest.approx(floor(found).standard_error)


def test_pools_of_one_leave_out_what_they_cannot_show() -> None:
    us, rs = pool(np.random.default_rng(10), 1), pool(np.random.default_rng(11), 4)
    alone = compare_with_retrained(us, rs[:1], "js")
    assert (alone.floor, alone.energy) == (None, None)
    values = js_per_image(us[0], rs[0])
    assert alone.to_retrained.value == pytest.approx(values.mean())
    assert alone.to_retrained.standard_error == pytest.approx(scipy.stats.sem(values))
    np.testing.assert_array_equal(alone.retrained_pairs, [[0]])
    assert alone.image_error == alone.to_retrained.standard_error
    fixed = compare_with_retrained(us, rs, "js")
    assert fixed.energy is None
    to = [js_per_image(us[0], r).mean() for r in rs]
    assert fixed.to_retrained.standard_error == pytest.approx(scipy.stats.sem(to))
    mirrored = compare_with_retrained(rs, us, "js")
    assert (mirrored.floor, mirrored.energy) == (None, None)
    assert mirrored.to_retrained.standard_error == pytest.approx(fixed.to_retrained.standard_error)
    mean = np.mean([js_per_image(us[0], r) for r in rs], axis=0)
    assert mirrored.image_error == pytest.approx(scipy.stats.sem(mean))


def test_refuses_what_cannot_be_compared() -> None:
    rng = np.random.default_rng(12)
    us, rs = pool(rng, 2), pool(rng, 2)
    with pytest.raises(ValueError, match="got 0 and 2; pass the probabilities of each"):
        compare_with_retrained([], rs, "js")
    with pytest.raises(ValueError, match="got 2 and 0"):
        compare_with_retrained(us, [], "js")
    with pytest.raises(ValueError, match="expected a distance 'disagreement', 'js' or 'kl', got 'l2'"):
        compare_with_retrained(us, rs, "l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one shape, got \(20, 3\) and \(19, 3\); pass the predictions"):
        compare_with_retrained(us, [rs[0], rs[1][:-1]], "js")


@pytest.mark.parametrize("measure", MEASURES)
def test_probabilities_are_checked(measure: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 4\)"):
        measure(P, np.full((2, 4), 0.25))
    with pytest.raises(ValueError, match="sum to 1, got 2 of 2 that do not; apply a softmax"):
        measure(P, np.log(Q))
    with pytest.raises(ValueError, match="n >= 2"):
        measure(P[:1], Q[:1])
