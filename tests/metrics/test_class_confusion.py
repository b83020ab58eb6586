import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from gen_unlearn.metrics.class_confusion import confused_per_image, confusion_left, swap_labels
from gen_unlearn.repro import id_keys

TRUTH = np.array([0, 0, 0, 1, 1, 2, 2, 2])


def predicting(predicted: list[int]) -> np.ndarray:
    return np.eye(3)[predicted]


def test_only_confusions_within_the_pair_count() -> None:
    model = predicting([0, 1, 2, 0, 1, 0, 1, 2])
    np.testing.assert_array_equal(confused_per_image(model, TRUTH, (0, 1)), [0, 1, 0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(confused_per_image(model, TRUTH, (1, 0)), [0, 1, 0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(confused_per_image(model, TRUTH, (2, 0)), [0, 0, 1, 0, 0, 1, 0, 0])


def test_counts_and_their_excess() -> None:
    unlearned, retrained = predicting([1, 1, 0, 0, 1, 2, 2, 2]), predicting([1, 0, 0, 1, 1, 0, 1, 2])
    found = confusion_left(unlearned, retrained, TRUTH, (0, 1))
    assert (found.confused, found.retrained, found.images) == (3, 1, 5)
    assert found.excess.value == pytest.approx(40)
    differences = np.array([0, 1, 0, 1, 0])
    assert found.excess.standard_error == pytest.approx(100 * differences.std(ddof=1) / np.sqrt(5))
    nothing = confusion_left(retrained, retrained, TRUTH, (0, 1))
    assert nothing.excess.value == 0
    assert nothing.excess.standard_error == pytest.approx(100 / 6)


def ids(images: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (images, 16), dtype=np.uint8)


def test_as_many_labels_of_both_classes_are_swapped() -> None:
    labels = np.random.default_rng(2).integers(0, 4, 200)
    found = swap_labels(labels, ids(200), (1, 3), 20, seed=0)
    changed = np.flatnonzero(found.labels != labels)
    np.testing.assert_array_equal(changed, found.rows)
    assert sorted(zip(labels[changed], found.labels[changed], strict=True)) == [(1, 3)] * 20 + [(3, 1)] * 20
    rows = np.random.default_rng(3).permutation(200)
    again = swap_labels(labels[rows], ids(200)[rows], (1, 3), 20, seed=0)
    assert set(id_keys(ids(200)[rows][again.rows])) == set(id_keys(ids(200)[found.rows]))
    other = swap_labels(labels, ids(200), (1, 3), 20, seed=1)
    assert (other.rows != found.rows).any()


def test_training_on_swapped_labels_leaves_confusions_that_retraining_does_not() -> None:
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 3, 300)
    images = generator.normal(size=(3, 5))[labels] * 3 + generator.normal(size=(300, 5))
    swap = swap_labels(labels, ids(300), (0, 1), 60, seed=0)
    kept = np.setdiff1d(np.arange(300), swap.rows)
    original = LogisticRegression().fit(images, swap.labels).decision_function(images)
    retrained = LogisticRegression().fit(images[kept], swap.labels[kept]).decision_function(images)
    found = confusion_left(original[swap.rows], retrained[swap.rows], labels[swap.rows], (0, 1))
    assert found.images == 120
    assert found.confused > found.retrained + 20
    assert found.excess.value > 5 * found.excess.standard_error


def test_refuses_what_is_no_pair_or_too_few() -> None:
    model = predicting([0] * 8)
    for pair in ((1, 1), (-1, 0)):
        with pytest.raises(ValueError, match="different classes"):
            confusion_left(model, model, TRUTH, pair)
    with pytest.raises(ValueError, match="below 3"):
        confusion_left(model, model, TRUTH, (0, 3))
    with pytest.raises(ValueError, match="two images"):
        confusion_left(model[:1], model[:1], TRUTH[:1], (0, 1))
    for wrong in (0, 3):
        with pytest.raises(ValueError, match="1 to 2 images"):
            swap_labels(TRUTH, ids(8), (0, 1), wrong, seed=0)
    with pytest.raises(ValueError, match="ids"):
        swap_labels(TRUTH, ids(7), (0, 1), 1, seed=0)
