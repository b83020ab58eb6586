from typing import get_args

import numpy as np
import pytest

from gen_unlearn.metrics.linear_probe import Head, linear_probe

CENTRES = np.random.default_rng(0).normal(size=(4, 6)) * 4


def features(images: int, seed: int, blind: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Draw features about the centre of each class; blind ones place class 0 at random among the others."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, images)
    shown = np.where((labels == 0) & blind, generator.integers(1, 4, images), labels)
    return CENTRES[shown] + generator.normal(size=(images, 6)), labels


@pytest.mark.parametrize("head", get_args(Head))
def test_features_that_hold_a_class_give_it_away(head: Head) -> None:
    found = linear_probe(*features(300, 1), *features(200, 2), [0], head)
    assert found.forgotten.value > 95
    assert found.retained is not None
    assert found.retained.value > 95


@pytest.mark.parametrize("head", get_args(Head))
def test_features_without_a_class_do_not(head: Head) -> None:
    found = linear_probe(*features(300, 1, blind=True), *features(200, 2, blind=True), [0], head)
    assert found.forgotten.value < 45
    assert found.retained is not None
    assert found.retained.value > found.forgotten.value + 30


def test_the_ridge_is_the_least_squares_solution() -> None:
    (x, y), (z, truth) = features(60, 3), features(500, 4)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    x, z = (x - mean) / spread, (z - mean) / spread
    targets = np.where(np.eye(4)[y] > 0, 1.0, -1.0)
    weights = np.linalg.solve(x.T @ x + 5 * np.eye(6), x.T @ (targets - targets.mean(axis=0)))
    predicted = (z @ weights + targets.mean(axis=0)).argmax(axis=1)
    found = linear_probe(*features(60, 3), *features(500, 4), [0, 2], penalty=5.0)
    gone = np.isin(truth, [0, 2])
    assert found.forgotten.value == pytest.approx(100 * (predicted == truth)[gone].mean())
    assert found.retained is not None
    assert found.retained.value == pytest.approx(100 * (predicted == truth)[~gone].mean())


def test_units_and_constant_features_do_not_count() -> None:
    (x, y), (z, truth) = features(200, 5), features(100, 6)
    units = np.array([1e-3, 1e3, 1, 10, 0.1, 1])
    one = linear_probe(x, y, z, truth, [1])
    scaled = linear_probe(
        np.hstack([x * units, np.ones((200, 1))]), y, np.hstack([z * units, np.ones((100, 1))]), truth, [1]
    )
    assert one == scaled


def test_all_classes_may_be_forgotten() -> None:
    assert linear_probe(*features(100, 7), *features(100, 8), range(4)).retained is None


def test_refuses_what_it_cannot_probe() -> None:
    train, test = features(100, 9), features(50, 10)
    kept = train[1] != 0
    with pytest.raises(ValueError, match="forget and retain set together"):
        linear_probe(train[0][kept], train[1][kept], *test, [0])
    with pytest.raises(ValueError, match="every forgotten class"):
        linear_probe(*train, *test, [])
    with pytest.raises(ValueError, match="head"):
        linear_probe(*train, *test, [0], "svm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="penalty"):
        linear_probe(*train, *test, [0], penalty=0)
    with pytest.raises(ValueError, match="one model and layer"):
        linear_probe(*train, test[0][:, :3], test[1], [0])
    with pytest.raises(ValueError, match="finite"):
        linear_probe(train[0] * np.nan, train[1], *test, [0])
    with pytest.raises(ValueError, match="integer"):
        linear_probe(*train, test[0], test[1][:9], [0])
    with pytest.raises(ValueError, match="floats"):
        linear_probe(train[0][:, 0], train[1], *test, [0])
