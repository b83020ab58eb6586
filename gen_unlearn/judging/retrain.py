"""How far a generator is from retraining: its distance to oracles, less that of oracles to each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gen_unlearn.judging.distances import measure_frechet
from gen_unlearn.judging.evidence import Evidence, Measurer
from gen_unlearn.metrics.feature_sets import FeatureSet
from gen_unlearn.metrics.gap import RetrainGap, retrain_gap
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.metrics.scorecard import Measure


def measure_retraining(evidence: Evidence, measurer: Measurer, config: ComparisonConfig) -> list[Measure]:
    """Measure FID_O of arXiv 2603.22870 and the retrain gap, before and after; nothing without an oracle.

    Images are compared with images of an oracle that were drawn from other noise: with common noise two
    oracles would be nearer than two draws of one. With one oracle the floor is its distance to itself from
    other noise, which leaves the noise of training out; with several it is their distance to each other.
    """
    if not evidence.oracles:
        return []
    classes = evidence.deletion.retained_classes
    sets = [measurer.features("oracle", drawn.of_classes(classes).images) for drawn in evidence.oracles]
    again = [
        measurer.features("oracle again", drawn.of_classes(classes).images)
        for drawn in evidence.oracles_again
    ]
    between = _between(sets, again, config)
    measures = []
    for state, suffix in (("before", "_before"), ("after", "")):
        if state not in evidence.states:
            continue
        samples = evidence.retained_samples(state)
        images = samples.images
        features = replace(measurer.features(f"images {state}", images), strata=samples.labels)
        found = [measure_frechet(features, oracle, config) for oracle in again]
        error = float(np.mean([distance.standard_error or 0.0 for distance in found]))
        gap = retrain_gap([distance.value for distance in found], between, error)
        text = (
            f"Frechet distance between {len(images)} images of the retained classes ({state}) and as many, "
            f"from other noise, of {_oracle_text(gap.oracles)}"
        )
        spread = {} if gap.retraining_spread is None else {"retraining_spread": gap.retraining_spread}
        measures += [
            Measure.of(
                f"fd_to_oracle{suffix}",
                gap.distance,
                f"{text} (FID_O). 0 means equal means and covariances of features, which not even another "
                "retraining reaches: compare with the floor.",
                gap.floor.value,
                f"{_floor_text(gap.oracles)} ({gap.floor})",
            ),
            Measure.of(
                f"retrain_gap{suffix}",
                gap.gap,
                f"{text}, less {_floor_text(gap.oracles)}. {_reading(gap)}",
                0.0,
                "the oracle itself" if gap.oracles == 1 else "the mean of further retrainings",
                spread,
            ),
        ]
    return measures


def _between(sets: list[FeatureSet], again: list[FeatureSet], config: ComparisonConfig) -> np.ndarray:
    """Return the distances between oracles, symmetric ``(K, K)``; of a single one its distance to itself."""
    count = len(sets)
    distances = np.zeros((count, count))
    for row in range(count):
        for column in range(row if count == 1 else row + 1, count):
            value = measure_frechet(sets[row], again[column], config).value
            distances[row, column] = distances[column, row] = value
    return distances


def _oracle_text(oracles: int) -> str:
    """Say what the model is compared with."""
    if oracles == 1:
        return "the oracle, the model retrained without the deleted images"
    return (
        "a model retrained without the deleted images; the mean over "
        f"{oracles} such oracles of different training seeds"
    )


def _floor_text(oracles: int) -> str:
    """Say what is taken off the distance."""
    if oracles == 1:
        return "the distance of the oracle to itself from other noise, which leaves out the noise of training"
    return "the mean distance between two of the oracles"


def _reading(gap: RetrainGap) -> str:
    """Say what a gap of 0 means, and by what one is told from it."""
    if gap.oracles == 1:
        return "0 means as near as the oracle comes to itself; another retraining would have more than 0."
    note = f"{gap.note[:1].upper()}{gap.note[1:]}."
    if gap.retraining_spread is None:
        return f"0 is the mean of further retrainings; it can be negative. {note}"
    return (
        f"0 is the mean of further retrainings, which scatter by {gap.retraining_spread:.2g} (the standard "
        f"deviation, retraining_spread): a gap is told from 0 by this, not by its own error. {note}"
    )
