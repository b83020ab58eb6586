import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import confusion_matrix

from gen_unlearn.metrics.estimate import Estimate, proportion
from gen_unlearn.metrics.forgetting import (
    class_probability,
    class_share,
    confusion_counts,
    forgotten_class_rate,
    label_accuracy,
    prediction_entropy,
    unlearning_accuracy,
)


def test_confusion_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    predicted, requested = rng.integers(0, 5, 200), rng.integers(0, 4, 200).astype(np.uint8)
    counts = confusion_counts(predicted, requested, 6)
    np.testing.assert_array_equal(counts, confusion_matrix(requested, predicted, labels=range(6)))
    assert counts.dtype == np.int64
    unsigned = confusion_counts(predicted.astype(np.uint64), requested.astype(np.uint64), 6)
    np.testing.assert_array_equal(unsigned, counts)


def test_confusion_refuses_labels_it_has_no_cell_for() -> None:
    with pytest.raises(ValueError, match="below 3, got 3"):
        confusion_counts(np.array([0, 3]), np.array([0, 1]), 3)


@pytest.mark.parametrize(
    "wrong", [np.array([0.0, 1.0]), np.array([0, -1]), np.array([[0, 1]]), np.array([0, 1, 2])]
)
def test_labels_are_checked(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        label_accuracy(wrong, np.array([0, 1]), [0])


def test_label_accuracy_is_over_the_requested_classes() -> None:
    predicted, requested = np.array([1, 1, 2, 0, 0]), np.array([1, 1, 1, 0, 2])
    assert label_accuracy(predicted, requested, [1]) == proportion(2, 3)
    assert label_accuracy(predicted, requested, [0, 1, 2]) == proportion(3, 5)
    with pytest.raises(ValueError, match=r"one of \[4\], got none of 5"):
        label_accuracy(predicted, requested, [4])


def test_class_share_is_over_all_images() -> None:
    assert class_share(np.array([3, 3, 1, 0]), [3, 1]) == proportion(3, 4)
    for wrong in ([], [1, 1], [-1]):
        with pytest.raises(ValueError, match="at least one class, each once"):
            class_share(np.array([3]), wrong)


@pytest.mark.parametrize("forgotten", [[3], [3, 7]])
def test_forgotten_rate_is_one_for_a_perfect_generator(forgotten: list[int]) -> None:
    labels = np.repeat(np.arange(10), 20)
    assert forgotten_class_rate(labels, labels, forgotten, 20).value == pytest.approx(1)


def test_forgotten_rate_finds_the_class_under_other_requests() -> None:
    requested = np.repeat([0, 1, 2, 4], 20)  # requests for class 3 are refused
    predicted = requested.copy()
    assert forgotten_class_rate(predicted, requested, [3], 20).value == 0
    assert forgotten_class_rate(predicted, requested, [3], 20).standard_error > 0
    predicted[:5] = 3
    found = forgotten_class_rate(predicted, requested, [3], 20)
    assert found.value == pytest.approx(5 / 20)
    assert found.standard_error == pytest.approx(np.sqrt(20**2 * 0.25 * 0.75 / 19) / 20)
    predicted[:] = 3
    assert forgotten_class_rate(predicted, requested, [3], 20).value == pytest.approx(4)


@pytest.mark.parametrize("images_per_class", [1, 2, 20])
def test_the_error_of_the_forgotten_rate_is_that_of_other_noise(images_per_class: int) -> None:
    rng = np.random.default_rng(images_per_class)
    requested = np.repeat(np.arange(40), images_per_class)
    chance = np.repeat([0.9, 0.3, 0.02], [2, 3, 35])[requested]
    found = [
        forgotten_class_rate(
            np.where(rng.random(len(chance)) < chance, 1, 0), requested, [1], images_per_class
        )
        for _ in range(1000)
    ]
    spread = np.std([estimate.value for estimate in found])
    stated = np.sqrt(np.mean([estimate.standard_error**2 for estimate in found]))
    if images_per_class == 1:  # the labels are taken together, as if their order were chance
        assert spread < stated < 1.6 * spread
    else:
        assert stated == pytest.approx(spread, rel=0.1)
    perfect = forgotten_class_rate(requested, requested, [1], images_per_class)
    one_image = 1 / images_per_class * len(requested) / (len(requested) + 1)
    assert perfect.standard_error >= one_image * (1 - 1e-12)
    if images_per_class > 1:
        assert perfect.standard_error == pytest.approx(one_image)


def test_forgotten_rate_with_every_request_refused() -> None:
    none = np.empty(0, dtype=np.int64)
    assert forgotten_class_rate(none, none, [0, 1], 20) == Estimate(0.0, 0.0)


def test_forgotten_rate_refuses_a_wrong_sweep_size() -> None:
    labels = np.repeat(np.arange(4), 20)
    with pytest.raises(ValueError, match="images_per_class = 10"):
        forgotten_class_rate(labels, labels, [3], 10)


def test_unlearning_accuracy_is_the_rest_of_the_accuracy() -> None:
    predicted = np.array([3, 3, 1, 0, 7])
    assert unlearning_accuracy(predicted, [3]).value == pytest.approx(3 / 5)
    assert unlearning_accuracy(predicted, [3]).standard_error == proportion(2, 5).standard_error
    assert unlearning_accuracy(predicted, [3, 7]).value == pytest.approx(2 / 5), "7 for 3 is not unlearned"
    asked = np.full(5, 3)
    assert unlearning_accuracy(predicted, [3]).value == pytest.approx(
        1 - label_accuracy(predicted, asked, [3]).value
    )
    gone = unlearning_accuracy(np.zeros(20, np.int64), [3])
    assert gone.value == 1
    assert gone.standard_error > 0
    with pytest.raises(ValueError, match="at least one trial"):
        unlearning_accuracy(np.empty(0, np.int64), [3])


def dirichlet(count: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.linspace(0.5, 2, classes), count)


def test_class_probability_is_a_mean_with_its_error() -> None:
    probabilities = dirichlet(500, 6)
    found = class_probability(probabilities.astype(np.float32), [4, 1])
    mass = probabilities[:, [1, 4]].sum(axis=1)
    assert found.value == pytest.approx(mass.mean(), rel=1e-6)
    assert found.standard_error == pytest.approx(scipy.stats.sem(mass), rel=1e-5)
    assert class_probability(probabilities, range(6)).value == pytest.approx(1)
    with pytest.raises(ValueError, match="classes below 6, got 6"):
        class_probability(probabilities, [6])


def test_entropy_agrees_with_scipy_and_with_its_ends() -> None:
    probabilities = dirichlet(300, 5)
    entropies = scipy.stats.entropy(probabilities, axis=1)
    found = prediction_entropy(probabilities)
    assert found.value == pytest.approx(entropies.mean(), rel=1e-10)
    assert found.standard_error == pytest.approx(scipy.stats.sem(entropies), rel=1e-10)
    assert prediction_entropy(np.eye(4)) == Estimate(0.0, 0.0)
    assert prediction_entropy(np.full((3, 8), 1 / 8)).value == pytest.approx(np.log(8))


@pytest.mark.parametrize(
    "wrong",
    [np.ones((3, 4)), np.ones(4) / 4, np.eye(2)[:1], np.array([[2.0, -1.0]] * 2), np.full((2, 2), np.nan)],
)
def test_probabilities_are_checked(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        prediction_entropy(wrong)
    with pytest.raises(ValueError, match="expected"):
        class_probability(wrong, [0])
