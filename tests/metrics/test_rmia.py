"""Tests of RMIA on confidences whose margins are normal."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from gen_unlearn.metrics.membership import membership_result
from gen_unlearn.metrics.rmia import rmia_ratio_scores, rmia_result, rmia_scores


def confidences(leak: float, images: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the confidences of a target that saw the images if `leak` > 0, of 4 references, and labels."""
    generator = np.random.default_rng(seed)
    hardness = generator.normal(1, 2, images)
    margins = hardness + generator.normal(size=(5, images))
    margins[0] += leak
    labels = generator.integers(5, size=images)
    return special.expit(margins[0]), special.expit(margins[1:]), labels


def test_ratio_by_hand() -> None:
    references = np.array([[0.1, 0.5], [0.2, 0.5], [0.3, 0.5], [0.2, 0.1]])
    np.testing.assert_allclose(rmia_ratio_scores(np.array([0.4, 0.8]), references), [2.0, 2.0])


def test_full_form_by_hand() -> None:
    target, references = np.array([0.8, 0.3]), np.full((4, 2), 0.4)
    population, population_references = np.array([0.1, 0.2, 0.4, 0.6]), np.full((4, 4), 0.4)
    # p = (1.3 * 0.4 + 0.7) / 2 = 0.61 for all, so that ratios compare as confidences.
    found = rmia_scores(target, references, population, population_references)
    np.testing.assert_allclose(found, [0.75, 0.25])
    found = rmia_scores(target, references, population, population_references, gamma=1.0)
    np.testing.assert_allclose(found, [1.0, 0.5])


def test_offline_correction_changes_the_ratio() -> None:
    target, references = np.array([0.5]), np.full((4, 1), 0.5)
    population, population_references = np.array([0.1]), np.full((4, 1), 0.1)
    # With a = 1 both ratios are 1; with a = 0 they are 0.5 / 0.75 and 0.1 / 0.55, a factor of 3.7.
    uncorrected = rmia_scores(target, references, population, population_references, offline_a=1.0)
    corrected = rmia_scores(target, references, population, population_references, offline_a=0.0)
    assert (uncorrected.tolist(), corrected.tolist()) == ([0.0], [1.0])


def test_offline_correction_by_hand() -> None:
    # p is 0.675 and 0.415, and 0.9 / 0.675 is 2.05 times 0.27 / 0.415 but 1.99 times 0.278 / 0.415.
    population, population_references = np.array([0.27, 0.278]), np.full((4, 2), 0.1)
    found = rmia_scores(np.array([0.9]), np.full((4, 1), 0.5), population, population_references)
    assert found.tolist() == [0.5]


def test_null_reads_one_half_and_a_leak_is_found() -> None:
    outsiders = confidences(0.0, 3_000, 1)
    null = rmia_result(*confidences(0.0, 3_000, 2), *outsiders)
    assert null.auc.value == pytest.approx(0.5, abs=0.02)
    leak = rmia_result(*confidences(1.5, 3_000, 3), *outsiders)
    assert leak.auc.value > 0.7


def test_references_remove_the_hardness_of_images() -> None:
    members, outsiders = confidences(1.0, 2_000, 4), confidences(0.0, 2_000, 5)
    plain = membership_result(members[0], members[2], outsiders[0], outsiders[2])
    assert rmia_result(*members, *outsiders).auc.value > plain.auc.value + 0.05


def test_full_form_without_correction_ranks_as_the_ratio() -> None:
    members, outsiders, population = (
        confidences(leak, 2_000, seed) for leak, seed in ((1, 6), (0, 7), (0, 8))
    )
    scores = [rmia_scores(*s[:2], *population[:2], gamma=1.0, offline_a=1.0) for s in (members, outsiders)]
    full = membership_result(scores[0], members[2], scores[1], outsiders[2])
    assert full.auc.value == pytest.approx(rmia_result(*members, *outsiders).auc.value, abs=1e-3)


def test_only_outsiders_of_the_same_class_count() -> None:
    target, references, _ = confidences(0.0, 100, 9)
    easy = np.full(100, 0.999)
    result = rmia_result(
        np.concatenate([target, easy]),
        np.concatenate([references, np.full((4, 100), 0.5)], axis=1),
        np.repeat([0, 1], 100),
        target,
        references,
        np.zeros(100, np.int64),
    )
    assert result.auc.value == 0.5
    assert result.left_out == 100


def test_lost_classes_stay_finite() -> None:
    assert rmia_ratio_scores(np.array([0.0]), np.zeros((4, 1))).tolist() == [1.0]


def test_wrong_arguments_raise() -> None:
    target, references = np.full(3, 0.5), np.full((4, 3), 0.5)
    with pytest.raises(ValueError, match="4 references or more, got 3"):
        rmia_ratio_scores(target, references[:3])
    with pytest.raises(ValueError, match="same images"):
        rmia_ratio_scores(target, references[:, :2])
    with pytest.raises(ValueError, match="not logits"):
        rmia_ratio_scores(target + 1, references)
    with pytest.raises(ValueError, match="not logits"):
        rmia_ratio_scores(np.full(3, np.nan), references)
    with pytest.raises(ValueError, match="gamma"):
        rmia_scores(target, references, target, references, gamma=0.5)
    labels = np.zeros(3, np.int64)
    with pytest.raises(ValueError, match="same references"):
        rmia_result(target, references, labels, target, np.full((5, 3), 0.5), labels)
