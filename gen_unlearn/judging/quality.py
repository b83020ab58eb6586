"""How good the images of the retained classes are, in every state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gen_unlearn.data import IndexedImages
from gen_unlearn.image_sets import ImageSet
from gen_unlearn.judging.data_copying import measure_data_copying
from gen_unlearn.judging.distances import as_measures, choose_floor, compare
from gen_unlearn.judging.evidence import Deletion, Evidence, Measurer, Recogniser, in_proportion
from gen_unlearn.metrics.estimate import mean_error
from gen_unlearn.metrics.feature_sets import FeatureSet, measure_features
from gen_unlearn.metrics.forgetting import label_accuracy
from gen_unlearn.metrics.frechet import FrechetMeasurement, influence_function
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.samples import SampleSet

_TRAINING = "retained training images"


def why_unmeasured(
    deletion: Deletion, test: IndexedImages, generated: Sequence[int], config: ComparisonConfig
) -> str:
    """Say why distances on the retained classes cannot be measured; nothing if they can.

    Args:
        deletion: what was deleted.
        test: the held-out images.
        generated: numbers of images of the retained classes in each set that is compared.
        config: how they are compared.
    """
    classes = deletion.retained_classes
    if not classes:
        return "The quality of images of retained classes was not measured: no class is left."
    least = config.neighbours + 2
    held_out, training = (int(np.isin(data.labels, classes).sum()) for data in (test, deletion.retained))
    least_held_out = least if training >= max(generated) else 2 * (config.neighbours + 1)  # for the floor
    needed = {
        "held-out": (held_out, least_held_out),
        "training": (training, least),
        "generated": (min(generated), least),
    }
    few = [
        f"at least {enough} {what} images of the retained classes, and there are {count}"
        for what, (count, enough) in needed.items()
        if count < enough
    ]
    if not few:
        return ""
    return (
        f"Distances to held-out images were not measured: {config.neighbours} neighbours "
        f"(evaluation.comparison.neighbours) take {'; '.join(few)}."
    )


def measure_quality(
    evidence: Evidence, measurer: Measurer, config: ComparisonConfig, detect: float | None = None
) -> list[Measure]:
    """Compare the images of the retained classes with the held-out ones, in every state.

    The Frechet distance is what arXiv 2603.22870 calls FID_R, with held-out images as the reference. `detect`
    is a difference of Frechet distances to plan the number of images for.
    """
    reference = measurer.features("held-out images", evidence.held_out.all_images())
    training = measurer.features_of(_TRAINING, evidence.retained)
    generated = {
        state: _stratified(measurer, f"images {state}", evidence.retained_samples(state))
        for state in evidence.states
    }
    count = len(next(iter(generated.values())))
    floor = choose_floor(count, reference, _stand_in(count, evidence, measurer), _TRAINING, config)
    measures = []
    distances = {}
    for state, features in generated.items():
        found = compare(features, reference, config)
        distances[state] = found.frechet
        text = (
            f"{len(features)} generated images of the retained classes ({state}) and the {len(reference)} "
            "held-out real images of these classes (FID_R)"
        )
        measures += as_measures(found, floor, state, text, "_retain", detect)
        values = found.frechet.value, floor.frechet
        error = found.frechet.standard_error
        measures += measure_data_copying(state, features, reference, training, *values, config, error)
    return [*measures, *_change(evidence, generated, reference, distances)]


def _stratified(measurer: Measurer, name: str, samples: SampleSet) -> FeatureSet:
    """Return the features of samples, which have fixed numbers of images per class."""
    return replace(measurer.features(name, samples.images), strata=samples.labels)


def _stand_in(count: int, evidence: Evidence, measurer: Measurer) -> FeatureSet:
    """Return the features of `count` retained training images, or of all, with the classes in proportion."""
    return measurer.features_of(_TRAINING, in_proportion(evidence.retained, count))


def _change(
    evidence: Evidence,
    generated: dict[str, FeatureSet],
    reference: FeatureSet,
    distances: dict[str, FrechetMeasurement],
) -> list[Measure]:
    """Measure how the Frechet distance changed; nothing without both states, alike and with an error."""
    if not {"before", "after"} <= set(generated):
        return []
    before, after = generated["before"], generated["after"]
    if len(before) != len(after):
        return []
    paired = None
    if _same_noise(*(evidence.retained_samples(state) for state in ("before", "after"))):
        paired = _paired_error(before, after, reference)
    if paired is None and None in (distances["before"].standard_error, distances["after"].standard_error):
        return []
    how = (
        "in quadrature, as if drawn from other noise"
        if paired is None
        else "of the differences between images drawn from the same noise"
    )
    return [
        Measure.of(
            "fd_retain_change",
            distances["after"].minus(distances["before"], paired),
            f"Change of fd_retain from before to after: Frechet distance of the {len(after)} images of the "
            f"retained classes to the held-out ones after, less that before. The error is {how}. Above 0 the "
            "deletion took these images away from the real ones.",
            0.0,
            "no change",
        )
    ]


def _same_noise(first: SampleSet, second: SampleSet) -> bool:
    """Tell whether image i of both sets was asked for under the same class and number."""
    return np.array_equal(first.labels, second.labels) and np.array_equal(first.indices, second.indices)


def _paired_error(before: FeatureSet, after: FeatureSet, reference: FeatureSet) -> float | None:
    """Return the error of the change of the distance to a reference; `None` with too few images for one."""
    if before.digest == after.digest:
        return 0.0
    if len(after) <= len(after.stats.mean):
        return None
    influences = []
    for features in (after, before):
        influence = influence_function(features.stats, reference.stats)
        influences.append(np.concatenate([influence(block) for block in features]))
    return mean_error(influences[0] - influences[1], after.strata)


def measure_folders(
    sets: Sequence[ImageSet],
    evidence: Evidence,
    measurer: Measurer,
    config: ComparisonConfig,
    detect: float | None = None,
) -> list[Measure]:
    """Compare sets of images from anywhere with the held-out images of the retained classes.

    `detect` is a difference of Frechet distances to plan the number of images for.
    """
    reference = measurer.features("held-out images", evidence.held_out.all_images())
    measures = []
    for images in sets:
        stand_in = _stand_in(len(images), evidence, measurer)
        floor = choose_floor(len(images), reference, stand_in, _TRAINING, config)
        found = compare(measure_features(images, measurer.extractor, measurer.cache), reference, config)
        text = (
            f"{len(images)} images of {images.name} and the {len(reference)} held-out real images of the "
            "retained classes"
        )
        measures += as_measures(found, floor, images.name, text, "", detect)
    return measures


def measure_accuracy(evidence: Evidence, recogniser: Recogniser) -> list[Measure]:
    """Measure how often an image of a retained class is recognised as what it was asked for as.

    Nothing without held-out images of a retained class.
    """
    classes, real = evidence.deletion.retained_classes, evidence.held_out
    if not len(real):
        return []
    best = label_accuracy(recogniser.recognise(real.all_images()), real.labels, classes)
    measures = []
    for state in evidence.states:
        retained = evidence.retained_samples(state)
        measures.append(
            Measure.of(
                f"retained_accuracy_{state}",
                label_accuracy(recogniser.recognise(retained.images), retained.labels, classes),
                f"Share of the images asked for under a retained class ({state}) that the judge recognises "
                f"as that class. Chance is {1 / len(evidence.test.class_names):.0%}.",
                best.value,
                "the judge's accuracy on the held-out real images of these classes: the best to expect",
            )
        )
    return measures
