"""What is measured of one generator, beside the original and the retrained model of its seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gen_unlearn.benchmark.generation.observation import ATTACKS, MeasuredCase, Observation
from gen_unlearn.metrics.auc import area_under_curve, strata_within_classes
from gen_unlearn.metrics.copy_tests import carlini_copies, training_neighbours
from gen_unlearn.metrics.copying import nearest_images
from gen_unlearn.metrics.feature_sets import FeatureSet
from gen_unlearn.metrics.forgetting import class_share, label_accuracy
from gen_unlearn.metrics.frechet import frechet_distance_of_features
from gen_unlearn.metrics.likelihood_ratio import likelihood_ratio_score
from gen_unlearn.metrics.manifold import manifold_metrics

LEAST_REFERENCES = 2
"""Retrained models of other seeds that the likelihood ratio needs."""

_NEIGHBOURS = 50
"""Distinct training images whose distance Carlini's ratio compares with."""

_BALL = 5
"""The neighbour that the balls of coverage reach to."""

Metrics = dict[str, float]
"""Id -> value, see `gen_unlearn.benchmark.generation.catalogue`; shares in percent, areas as shares."""


def measure(
    observed: Observation,
    original: Observation,
    retrained: Observation,
    others: Sequence[Observation],
    measured: MeasuredCase,
) -> Metrics:
    """Return all metrics of a model but its cost; one that does not apply is not there.

    Args:
        observed: the model.
        original: the original of its seed.
        retrained: the model of its seed that was retrained without the forgotten images.
        others: retrained models of other seeds; one that scores as the model does is no reference.
        measured: the forget set, and what all its models are measured with.
    """
    return (
        _quality(observed, retrained, measured)
        | _forgetting(observed, measured)
        | _leakage(observed, others, measured)
        | _copies(observed, original, measured)
    )


def _quality(observed: Observation, retrained: Observation, measured: MeasuredCase) -> Metrics:
    """Return how good the samples of the retained classes are."""
    classes = measured.retained_classes
    samples = observed.samples.of_classes(classes)
    own, target = _features(observed, measured).array(), _features(retrained, measured).array()
    predicted = measured.recogniser.recognise(samples.images)
    found = {
        "recognised.retained": 100 * label_accuracy(predicted, samples.labels, classes).value,
        "fd.retrained": 0.0 if np.array_equal(own, target) else frechet_distance_of_features(own, target),
    }
    real = measured.reference.array()
    if len(real) > 1:
        found["fd.test"] = frechet_distance_of_features(own, real)
        reach = min(_BALL, len(real) - 1, len(own) - 1)
        found["coverage.test"] = 100 * manifold_metrics(real=real, generated=own, k=reach).coverage.value
    return found


def _features(observed: Observation, measured: MeasuredCase) -> FeatureSet:
    images = observed.samples.of_classes(measured.retained_classes).images
    return measured.measurer.features("samples of retained classes", images)


def _forgetting(observed: Observation, measured: MeasuredCase) -> Metrics:
    """Return how much of a forgotten class is still generated, and how well images are denoised."""
    members, losses = len(measured.scored.data), -observed.scores["loss"]
    found = {"loss.forget": float(losses[:members].mean())}
    if members < len(losses):
        found["loss.test"] = float(losses[members:].mean())
    if measured.forgotten_classes:
        samples = observed.samples.of_classes(measured.forgotten_classes)
        predicted = measured.recogniser.recognise(samples.images)
        found["recognised.forgotten"] = 100 * class_share(predicted, measured.forgotten_classes).value
    return found


def _leakage(observed: Observation, others: Sequence[Observation], measured: MeasuredCase) -> Metrics:
    """Return how well attacks tell forgotten from unseen images; nothing without unseen images."""
    if not len(measured.scored.held_out):
        return {}
    found = {f"mia.{attack}.auc": _area(observed.scores[attack], measured) for attack in ATTACKS}
    references = _references(observed, others)
    if len(references) >= LEAST_REFERENCES:
        ratio = likelihood_ratio_score(observed.scores["loss"], np.stack(references))
        found["mia.lira.auc"] = _area(ratio, measured)
    return found


def _references(observed: Observation, others: Sequence[Observation]) -> list[np.ndarray]:
    """Return the losses of other models: neither the model itself is among them, nor one twice."""
    seen, found = [observed.scores["loss"]], []
    for other in others:
        losses = other.scores["loss"]
        if not any(np.array_equal(losses, known) for known in seen):
            seen.append(losses)
            found.append(losses)
    return found


def _area(scores: np.ndarray, measured: MeasuredCase) -> float:
    """Return the area under the ROC curve of scores of forgotten and unseen images, within classes."""
    scored, members = measured.scored, len(measured.scored.data)
    strata = strata_within_classes(
        scores[:members], scored.data.labels, scores[members:], scored.held_out.labels
    )
    return area_under_curve(strata)[0].value


def _copies(observed: Observation, original: Observation, measured: MeasuredCase) -> Metrics:
    """Return how many samples are copies of training images, and how many forgotten images are copied."""
    gallery = measured.gallery
    samples = observed.samples.of_classes(measured.touched_classes)
    forgotten = gallery.images[gallery.deleted]
    distances, _ = nearest_images(forgotten, samples.images)
    found = {"nearest.forget": float(np.median(distances))}
    if len(gallery.images) < 2:
        return found
    copied, retained = _copied(observed, measured), _copied_retained(observed, measured)
    sources = np.unique(copied[copied >= 0])
    found |= {
        "copies.forget": 100 * float((copied >= 0).mean()),
        "copies.retain": 100 * float(retained.mean()),
        "extracted.forget": 100 * len(sources) / len(forgotten),
    }
    before = _copied(original, measured)
    before = np.unique(before[before >= 0])
    if len(before):
        found["extracted.kept"] = 100 * float(np.isin(before, sources).mean())
    return found


def _copied(observed: Observation, measured: MeasuredCase) -> np.ndarray:
    """Return which forgotten image each sample of its class copies, -1 for none, int64 ``(n,)``.

    The samples are those asked for under classes that have forgotten images.
    """
    images = observed.samples.of_classes(measured.touched_classes).images
    near = training_neighbours(images, measured.gallery, _neighbours(measured))
    return np.where(carlini_copies(near.distances) & near.deleted, near.nearest, -1)


def _copied_retained(observed: Observation, measured: MeasuredCase) -> np.ndarray:
    """Return which samples asked for under retained classes copy a retained image, bool ``(n,)``."""
    images = observed.samples.of_classes(measured.retained_classes).images
    near = training_neighbours(images, measured.gallery, _neighbours(measured))
    return carlini_copies(near.distances) & ~near.deleted


def _neighbours(measured: MeasuredCase) -> int:
    return min(_NEIGHBOURS, len(measured.gallery.images))
