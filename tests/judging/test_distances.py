"""Distances of images in fixed numbers per class: errors and parts count the spread within classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gen_unlearn.judging.distances import measure_frechet
from gen_unlearn.metrics.estimate import mean_error
from gen_unlearn.metrics.feature_sets import FeatureSet
from gen_unlearn.metrics.features import MeasurementProtocol
from gen_unlearn.metrics.protocol import ComparisonConfig

PROTOCOL = MeasurementProtocol("toy", "0" * 64, "none", (1, 8, 8))
CLASSES, PER_CLASS, DIM = 5, 40, 4
CENTRES = 4 * np.random.default_rng(1).normal(size=(CLASSES, DIM))
LABELS = np.tile(np.arange(CLASSES), PER_CLASS)


def draw(seed: int, shift: float = 0.5) -> FeatureSet:
    """Draw as many features of each class, far apart from each other, in cycles of the classes."""
    noise = np.random.default_rng(seed).normal(size=(len(LABELS), DIM))
    return FeatureSet.of("drawn", CENTRES[LABELS] + noise + shift, PROTOCOL)


def reference() -> FeatureSet:
    noise = np.random.default_rng(0).normal(size=(2000, DIM))
    return FeatureSet.of("real", CENTRES[np.arange(2000) % CLASSES] + noise, PROTOCOL)


def test_the_error_of_stratified_draws_is_that_of_monte_carlo() -> None:
    real, config = reference(), ComparisonConfig()
    sets = [draw(seed) for seed in range(300)]
    values = [measure_frechet(features, real, config).value for features in sets]
    within = [
        measure_frechet(replace(features, strata=LABELS), real, config).standard_error
        for features in sets[:40]
    ]
    blind = [measure_frechet(features, real, config).standard_error for features in sets[:40]]
    assert np.mean(within) == pytest.approx(np.std(values), rel=0.15)
    assert np.mean(blind) > 2 * np.std(values), "the draw of the classes would be in it"


def test_the_correction_leaves_the_classes_in_proportion() -> None:
    real, config = reference(), ComparisonConfig()
    truth = measure_frechet(
        FeatureSet.of("many", np.concatenate([draw(seed).array() for seed in range(400, 500)]), PROTOCOL),
        real,
        config,
    ).value
    sets = [replace(draw(seed), strata=LABELS) for seed in range(800)]
    found = [measure_frechet(features, real, config) for features in sets]
    corrected, raw = [one.jackknife_corrected for one in found], [one.value for one in found]
    assert abs(np.mean(corrected) - truth) < 0.5 * abs(np.mean(raw) - truth)
    parts = sets[0].stats_of_parts(20)
    assert {part.n for part in parts} == {10}
    proportions = FeatureSet.of("labels", np.eye(CLASSES)[LABELS], PROTOCOL)
    for part in replace(proportions, strata=LABELS).stats_of_parts(20):
        np.testing.assert_allclose(part.mean, 1 / CLASSES)


def test_the_error_of_a_mean() -> None:
    values = np.array([1.0, 2.0, 11.0, 12.0])
    assert mean_error(values, None) == pytest.approx(values.std(ddof=1) / 2)
    assert mean_error(values, np.array([0, 0, 1, 1])) == pytest.approx(np.sqrt(4 * 0.5) / 4)
    alone = mean_error(values, np.array([0, 0, 0, 1]))
    assert alone == pytest.approx(np.sqrt(3 * values[:3].var(ddof=1) + values.var(ddof=1)) / 4)
