import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.population_attack import best_threshold, calibration_halves, population_mia


def draw(
    members: int, outsiders: int, shift: float, seed: int = 0, classes: int = 1
) -> tuple[np.ndarray, ...]:
    """Draw normal scores; classes lie far apart, members `shift` higher."""
    generator = np.random.default_rng(seed)
    own, other = generator.integers(0, classes, members), generator.integers(0, classes, outsiders)
    return (
        generator.normal(size=members) + shift + 5 * own,
        own,
        generator.normal(size=outsiders) + 5 * other,
        other,
    )


def balanced(scores: tuple[np.ndarray, ...], seed: int = 0) -> Estimate:
    found = population_mia(*scores, seed=seed).balanced_accuracy
    assert found is not None
    return found


def test_normal_scores_reach_what_theory_says() -> None:
    found = population_mia(*draw(4000, 4000, 1.0))
    assert found.auc.value == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)), abs=0.015)
    assert found.auc_interval[0] < found.auc.value < found.auc_interval[1]
    assert found.balanced_accuracy is not None
    assert found.balanced_accuracy.value == pytest.approx(stats.norm.cdf(0.5), abs=0.02)
    assert found.balanced_accuracy.standard_error == pytest.approx(np.sqrt(0.6915 * 0.3085 / 8000), rel=0.05)
    assert found.tpr_1_percent is not None
    assert found.tpr_1_percent.value == pytest.approx(stats.norm.sf(stats.norm.isf(0.01) - 1), abs=0.04)
    assert found.tpr_1_per_mille is not None
    assert found.tpr_1_per_mille_interval is not None
    low, high = found.tpr_1_per_mille_interval
    assert low < stats.norm.sf(stats.norm.isf(0.001) - 1) < high
    assert (found.forgotten, found.heldout, found.left_out) == (4000, 4000, 0)


def test_area_of_one_class_is_that_of_scikit_learn() -> None:
    scores = draw(50, 80, 0.5)
    expected = roc_auc_score(np.repeat([1, 0], [50, 80]), np.concatenate([scores[0], scores[2]]))
    assert population_mia(*scores).auc.value == pytest.approx(expected, abs=1e-12)


def test_balanced_accuracy_is_chance_on_average_where_nothing_can_be_told() -> None:
    values = [balanced(draw(20, 30, 0.0, seed)).value for seed in range(200)]
    assert np.mean(values) == pytest.approx(0.5, abs=3.5 * float(np.std(values)) / 200**0.5)
    in_sample = []
    for seed in range(100):
        own, _, other, _ = draw(20, 30, 0.0, seed)
        threshold = best_threshold(own, other, np.ones(30))
        in_sample.append(((own > threshold).mean() + (other <= threshold).mean()) / 2)
    assert np.mean(in_sample) > 0.57, "a threshold chosen on the same images would look like a leak"


def test_classes_are_no_clue() -> None:
    """A forgotten class scores high on every model; only held-out images of that class may be compared."""
    generator = np.random.default_rng(5)
    forget = generator.normal(3, 1, 300)
    labels = np.repeat([0, 1], [300, 300])
    heldout = np.concatenate([generator.normal(3, 1, 300), generator.normal(-3, 1, 300)])
    found = population_mia(forget, np.zeros(300, dtype=np.int64), heldout, labels)
    assert found.heldout == 300
    assert found.auc.value == pytest.approx(0.5, abs=0.07)
    assert found.balanced_accuracy is not None
    assert found.balanced_accuracy.value == pytest.approx(0.5, abs=0.08)
    mixed = np.repeat([0, 1], [270, 30])
    scores = np.where(mixed == 0, generator.normal(3, 1, 300), generator.normal(-3, 1, 300))
    weighted = population_mia(scores, mixed, heldout, labels).balanced_accuracy
    assert weighted is not None
    assert weighted.value == pytest.approx(0.5, abs=0.08)


def test_order_does_not_matter_with_ids() -> None:
    scores = draw(41, 63, 1.0, classes=3)
    generator = np.random.default_rng(9)
    ids = [generator.integers(0, 256, (n, 16), dtype=np.uint8) for n in (41, 63)]
    rows, others = generator.permutation(41), generator.permutation(63)
    one = population_mia(*scores, seed=4, forget_ids=ids[0], heldout_ids=ids[1])
    shuffled = (scores[0][rows], scores[1][rows], scores[2][others], scores[3][others])
    two = population_mia(*shuffled, seed=4, forget_ids=ids[0][rows], heldout_ids=ids[1][others])
    assert one.balanced_accuracy is not None
    assert two.balanced_accuracy is not None
    assert one.balanced_accuracy.value == pytest.approx(two.balanced_accuracy.value, abs=1e-12)
    assert one.tpr_1_percent == two.tpr_1_percent
    assert one.auc.value == pytest.approx(two.auc.value, abs=1e-15)
    seeds = {balanced(scores, seed).value for seed in range(8)}
    assert len(seeds) > 1
    assert balanced(scores, 3) == balanced(scores, 3)


def test_halves_split_every_class() -> None:
    labels = np.random.default_rng(2).integers(0, 4, 103)
    half = calibration_halves(labels, 0, "forget")
    for label in range(4):
        ones, images = int(half[labels == label].sum()), int((labels == label).sum())
        assert abs(2 * ones - images) <= 1
    assert set(calibration_halves(np.array([0, 1]), 0, "forget")) == {0, 1}
    assert (half != calibration_halves(labels, 1, "forget")).any()


def test_the_best_threshold_is_that_of_a_search() -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        own, other = generator.integers(0, 8, 15).astype(float), generator.integers(0, 6, 20).astype(float)
        weights = generator.random(20)
        threshold = best_threshold(own, other, weights)
        tries = np.arange(-1, 9) + 0.5

        def score(t: float) -> float:
            return float((own > t).mean() + weights[other <= t].sum() / weights.sum())  # noqa: B023

        assert score(threshold) == pytest.approx(max(score(t) for t in tries))


def test_rates_that_cannot_be_told_are_left_out() -> None:
    few = population_mia(*draw(30, 99, 1.0))
    assert few.tpr_1_percent is None
    assert few.tpr_1_percent_interval is None
    some = population_mia(*draw(30, 999, 1.0))
    assert some.tpr_1_percent is not None
    assert some.tpr_1_per_mille is None
    assert list(some.named("loss")) == [
        f"mia_pop.loss.{s}" for s in ("auc", "balanced_acc", "tpr@1%", "tpr@.1%")
    ]
    single = population_mia(np.ones(1), np.zeros(1, dtype=np.int64), np.zeros(9), np.zeros(9, dtype=np.int64))
    assert single.balanced_accuracy is None
    assert single.auc.value == 1


def test_refuses_mismatched_ids_and_scores() -> None:
    scores = draw(10, 12, 0.0)
    with pytest.raises(ValueError, match="one id"):
        population_mia(*scores, forget_ids=np.zeros((9, 16), dtype=np.uint8))
    with pytest.raises(ValueError, match="finite"):
        population_mia(np.full(10, np.nan), *scores[1:])
    with pytest.raises(ValueError, match="held-out images of a forgotten class"):
        population_mia(scores[0], scores[1] + 1, *scores[2:])
