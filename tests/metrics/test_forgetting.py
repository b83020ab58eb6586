import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from gen_unlearn.metrics.estimate import Estimate, proportion
from gen_unlearn.metrics.forgetting import (
    class_share,
    confusion_counts,
    forgotten_class_rate,
    label_accuracy,
)


def test_confusion_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    predicted, requested = rng.integers(0, 5, 200), rng.integers(0, 4, 200).astype(np.uint8)
    counts = confusion_counts(predicted, requested, 6)
    np.testing.assert_array_equal(counts, confusion_matrix(requested, predicted, labels=range(6)))
    assert counts.dtype == np.int64


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
    share = proportion(5, 80)
    assert found.value == pytest.approx(5 / 20)
    assert found.standard_error == pytest.approx(share.standard_error * 80 / 20)
    predicted[:] = 3
    assert forgotten_class_rate(predicted, requested, [3], 20).value == pytest.approx(4)


def test_forgotten_rate_with_every_request_refused() -> None:
    none = np.empty(0, dtype=np.int64)
    assert forgotten_class_rate(none, none, [0, 1], 20) == Estimate(0.0, 0.0)


def test_forgotten_rate_refuses_a_wrong_sweep_size() -> None:
    labels = np.repeat(np.arange(4), 20)
    with pytest.raises(ValueError, match="images_per_class = 10"):
        forgotten_class_rate(labels, labels, [3], 10)
