import numpy as np
import pytest

from gen_unlearn.metrics.classifier_accuracy import (
    accuracies,
    accuracy,
    accuracy_difference,
    class_collateral,
    correct_per_image,
    optml_ua,
    paired_gap,
    paired_gaps,
)
from gen_unlearn.metrics.estimate import Estimate, proportion


def predicting(predicted: list[int], classes: int = 3) -> np.ndarray:
    return np.eye(classes)[predicted] * 4


LABELS = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2, 2])
RETRAINED = predicting([1, 2, 1, 1, 1, 2, 2, 2, 2, 0])  # forgot class 0
UNLEARNED = predicting([0, 2, 1, 2, 2, 2, 2, 2, 2, 2])


def test_accuracy_is_a_proportion_in_percent() -> None:
    found, expected = accuracy(UNLEARNED, LABELS), proportion(7, 10)
    assert correct_per_image(UNLEARNED, LABELS).sum() == 7
    assert found.value == pytest.approx(100 * expected.value)
    assert found.standard_error == pytest.approx(100 * expected.standard_error)
    perfect = accuracy(predicting(list(LABELS)), LABELS)
    assert perfect.value == 100
    assert perfect.standard_error == pytest.approx(100 / 11)


def test_weights_count_images_as_if_repeated_and_zero_drops_them() -> None:
    counts = np.array([1, 2, 0, 3, 1, 1, 0, 2, 1, 1])
    repeated = np.repeat(np.arange(10), counts)
    weighted = accuracy(UNLEARNED, LABELS, counts.astype(np.float64))
    assert weighted.value == pytest.approx(accuracy(UNLEARNED[repeated], LABELS[repeated]).value)
    padded = accuracy(UNLEARNED, LABELS, np.array([1.0] * 8 + [0.0] * 2))
    assert padded.value == pytest.approx(accuracy(UNLEARNED[:8], LABELS[:8]).value)
    assert padded.standard_error == pytest.approx(accuracy(UNLEARNED[:8], LABELS[:8]).standard_error)


def test_it_is_no_mean_of_batch_means() -> None:
    batches = [slice(0, 7), slice(7, 10)]
    means = [accuracy(UNLEARNED[b], LABELS[b]).value for b in batches]
    assert accuracy(UNLEARNED, LABELS).value != pytest.approx(np.mean(means))


def test_forgotten_classes_leave_the_test_accuracy() -> None:
    found = accuracies({"forget": (UNLEARNED[:2], LABELS[:2]), "test": (UNLEARNED, LABELS)}, [0])
    assert set(found) == {"acc.forget", "acc.test", "acc.forget_class_test", "optml.ua"}
    assert found["acc.test"].value == pytest.approx(100 * 6 / 8)
    assert found["acc.forget_class_test"].value == pytest.approx(50)
    assert found["optml.ua"].value == pytest.approx(50)
    whole = accuracies({"retain": (UNLEARNED, LABELS), "test": (UNLEARNED, LABELS)})
    assert set(whole) == {"acc.retain", "acc.test"}
    assert whole["acc.test"].value == pytest.approx(70)
    halves = accuracies({"test": (UNLEARNED, LABELS)}, [0], {"test": np.array([3.0] + [1.0] * 9)})
    assert halves["acc.forget_class_test"].value == pytest.approx(75)


def test_unlearning_accuracy_is_the_complement() -> None:
    assert optml_ua(Estimate(94.76, 0.4)).value == pytest.approx(5.24)
    with pytest.raises(ValueError, match="percent"):
        optml_ua(Estimate(101.0, 0.1))


def test_gaps_keep_their_sign() -> None:
    gap = paired_gap(2.85, 5.24)
    assert gap.signed == pytest.approx(-2.39)
    assert gap.absolute == pytest.approx(2.39)
    assert paired_gaps({"acc.test": 90.0}, {"acc.test": 91.5})["gap.acc.test"].signed == -1.5
    with pytest.raises(ValueError, match=r"acc\.retain"):
        paired_gaps({"acc.test": 90.0}, {"acc.test": 91.5, "acc.retain": 99.0})
    with pytest.raises(ValueError, match="finite"):
        paired_gap(float("nan"), 1.0)


def test_collateral_names_the_class_that_suffers() -> None:
    found = class_collateral(UNLEARNED, RETRAINED, LABELS, [0])
    assert list(found) == [1, 2]
    assert found[1].value == pytest.approx(-100 * 2 / 3)
    assert found[2].value == pytest.approx(20)
    assert class_collateral(RETRAINED, RETRAINED, LABELS)[1].value == 0
    with pytest.raises(ValueError, match="retained"):
        class_collateral(UNLEARNED, RETRAINED, LABELS, [0, 1, 2])


def test_the_difference_pairs_images() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 400)
    one = predicting(list(np.where(generator.random(400) < 0.6, labels, (labels + 1) % 3)))
    other = one.copy()
    other[:5] = predicting(list((labels[:5] + 1) % 3))
    alone = np.hypot(accuracy(one, labels).standard_error, accuracy(other, labels).standard_error)
    assert accuracy_difference(one, other, labels).standard_error < alone / 5


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (UNLEARNED.astype(np.int64), LABELS),
        (UNLEARNED[:, 0], LABELS),
        (UNLEARNED[:0], LABELS[:0]),
        (UNLEARNED, LABELS[:5]),
        (UNLEARNED, LABELS.astype(np.float64)),
        (UNLEARNED[:, :2], LABELS),
        (UNLEARNED, LABELS - 1),
        (np.where(UNLEARNED > 0, np.nan, 0.0), LABELS),
    ],
)
def test_refuses_what_is_no_classification(logits: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        accuracy(logits, labels)


@pytest.mark.parametrize("weights", [np.zeros(10), -np.ones(10), np.ones(9), np.full(10, np.nan)])
def test_refuses_bad_weights(weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match="weights"):
        accuracy(UNLEARNED, LABELS, weights)
