"""How good the images of the retained classes are, in every state."""

from __future__ import annotations

from collections.abc import Sequence

from gen_unlearn.image_sets import ImageSet
from gen_unlearn.judging.data_copying import measure_data_copying
from gen_unlearn.judging.distances import as_measures, compare, floor_from_halves, floor_from_images
from gen_unlearn.judging.evidence import Evidence, Measurer, Recogniser
from gen_unlearn.metrics.feature_sets import measure_features
from gen_unlearn.metrics.forgetting import label_accuracy
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.metrics.scorecard import Measure


def measure_quality(
    evidence: Evidence, measurer: Measurer, config: ComparisonConfig, detect: float | None = None
) -> list[Measure]:
    """Compare the images of the retained classes with the held-out ones, in every state.

    The Frechet distance is what arXiv 2603.22870 calls FID_R, with held-out images as the reference. `detect`
    is a difference of Frechet distances to plan the number of images for.
    """
    held_out = evidence.held_out.all_images()
    stand_in = evidence.stand_in.all_images()
    reference = measurer.features("held-out images", held_out)
    floor = floor_from_images(
        measurer.features("training images", stand_in),
        reference,
        config,
        f"{len(stand_in)} retained training images in the place of generated ones",
    )
    training = measurer.features("retained training images", evidence.retained.all_images())
    measures = []
    for state in evidence.states:
        images = evidence.retained_samples(state)
        features = measurer.features(f"images {state}", images)
        found = compare(features, reference, config)
        text = (
            f"{len(images)} generated images of the retained classes ({state}) and the {len(held_out)} "
            "held-out real images of these classes (FID_R)"
        )
        measures += as_measures(found, floor, state, text, "_retain", detect)
        measures += measure_data_copying(
            state, features, reference, training, found.frechet.value, floor.frechet, config
        )
    return measures


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
        floor = floor_from_halves(reference, len(images), config)
        found = compare(measure_features(images, measurer.extractor, measurer.cache), reference, config)
        text = f"{len(images)} images of {images.name} and the {len(reference)} held-out real images"
        measures += as_measures(found, floor, images.name, text, "", detect)
    return measures


def measure_accuracy(evidence: Evidence, recogniser: Recogniser) -> list[Measure]:
    """Measure how often an image of a retained class is recognised as what it was asked for as."""
    classes, real = evidence.deletion.retained_classes, evidence.held_out
    best = label_accuracy(recogniser.recognise(real.all_images()), real.labels, classes)
    measures = []
    for state, samples in evidence.states.items():
        retained = samples.of_classes(classes)
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
