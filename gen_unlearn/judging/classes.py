"""Which classes are generated: how much of a deleted one is left, and what is taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gen_unlearn.judging.distances import Floor, choose_floor, frechet_measure, measure_frechet
from gen_unlearn.judging.evidence import Evidence, Measurer, Recogniser, in_proportion, of_classes
from gen_unlearn.metrics.feature_sets import FeatureSet
from gen_unlearn.metrics.forgetting import (
    class_probability,
    class_share,
    confusion_counts,
    forgotten_class_rate,
    prediction_entropy,
    unlearning_accuracy,
)
from gen_unlearn.metrics.manifold import manifold_metrics
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.samples import SampleSet

NULL_NAME = "null token"

_LARGEST_FULL_TABLE = 100
"""Classes up to which a table of confusions names every class in every row."""


def measure_forgetting(
    evidence: Evidence,
    recogniser: Recogniser,
    measurer: Measurer,
    images_per_class: int,
    config: ComparisonConfig,
) -> list[Measure]:
    """Measure how often a deleted class is still generated; nothing if no whole class was deleted.

    Args:
        evidence: samples, and what was deleted.
        recogniser: says which class an image shows.
        measurer: extracts features.
        images_per_class: images that were asked for under each class.
        config: how the images of the null token are compared with those of the deleted class.
    """
    classes = evidence.deletion.classes
    if not classes:
        return []
    names = ", ".join(evidence.test.class_names[label] for label in classes)
    return [
        *_rates(evidence, recogniser, images_per_class, names),
        *_null_token(evidence, recogniser, names),
        *_unlearning_accuracies(evidence, recogniser, names),
        *_null_likeness(evidence, measurer, config, names),
    ]


def _rates(evidence: Evidence, recogniser: Recogniser, images_per_class: int, names: str) -> list[Measure]:
    classes, retained = evidence.deletion.classes, evidence.deletion.retained_classes
    mistaken = None
    if len(evidence.held_out):
        mistaken = class_share(recogniser.recognise(evidence.held_out.all_images()), classes).value
    measures = []
    for state, samples in evidence.states.items():
        asked = samples.conditional
        measures.append(
            Measure.of(
                f"forgotten_class_rate_{state}",
                forgotten_class_rate(
                    recogniser.recognise(asked.images), asked.labels, classes, images_per_class
                ),
                f"Images recognised as the deleted class ({names}) when every class is asked for "
                f"{images_per_class} times ({state}), whatever class they were asked for under, per image "
                "asked for under the deleted class: 1 is a generator that obeys. A refused request yields no "
                "image.",
                None if mistaken is None else mistaken * len(retained) / len(classes),
                "what the judge's mistakes on real images of the retained classes would give",
            )
        )
    return measures


def _null_token(evidence: Evidence, recogniser: Recogniser, names: str) -> list[Measure]:
    classes = evidence.deletion.classes
    chance, words = len(classes) / len(evidence.test.class_names), evidence.words
    sure = None
    if len(evidence.held_out) > 1:
        sure = prediction_entropy(recogniser.probabilities(evidence.held_out.all_images())).value
    measures = []
    for state, name in _null_states(evidence):
        probabilities = recogniser.probabilities(evidence.states[state].null.images)
        which = f"{len(probabilities)} images sampled from the null token, {words.null} ({state})"
        measures += [
            Measure.of(
                f"forgotten_class_rate_{name}",
                class_share(probabilities.argmax(axis=1), classes),
                f"Share of {which}, that the judge recognises as the deleted class ({names}): {words.kept}.",
                chance,
                "chance level; the oracle's value shows what weights give that never saw the deleted images",
            ),
            Measure.of(
                f"forgotten_probability_{name}",
                class_probability(probabilities, classes),
                f"Mean probability that the judge gives to the deleted class ({names}) over {which}.",
                chance,
                "chance level; compare with the oracle's value",
            ),
            Measure.of(
                f"entropy_{name}",
                prediction_entropy(probabilities),
                f"Mean entropy of the judge's prediction, in nats, over {which}. High for images that show "
                "no class, which would pass for forgotten.",
                sure,
                "held-out real images of the retained classes",
            ),
        ]
    return measures


def _null_states(evidence: Evidence) -> list[tuple[str, str]]:
    """Return the states whose null token is judged, each with what names of measures end in."""
    names = {"after": "null", "oracle": "null_oracle"}
    states = evidence.states
    return [
        (state, name) for state, name in names.items() if state in states and len(states[state].null.images)
    ]


def _null_likeness(
    evidence: Evidence, measurer: Measurer, config: ComparisonConfig, names: str
) -> list[Measure]:
    """Compare images of the null token with held-out ones of the deleted class, unless these are too few."""
    real = evidence.forgotten_held_out
    if len(real) < 2 * (config.neighbours + 1):  # Its halves may have to give the floor.
        return []
    reference = measurer.features("held-out images of the deleted class", real.all_images())
    trained = of_classes(evidence.deletion.images, evidence.deletion.classes)
    measures = []
    for state, name in _null_states(evidence):
        images = evidence.states[state].null.images
        if len(images) < config.neighbours + 2:
            continue
        stand_in = in_proportion(trained, len(images)).all_images()
        training = measurer.features("deleted images", stand_in) if len(stand_in) == len(images) else None
        floor = choose_floor(len(images), reference, training, "deleted training images of it", config)
        measures += _likeness(
            name,
            measurer.features(f"null images {state}", images),
            reference,
            floor,
            config,
            f"{len(images)} images sampled from the null token ({state})",
            f"{len(real)} held-out real images of the deleted class ({names})",
        )
    return measures


def _likeness(
    name: str,
    generated: FeatureSet,
    reference: FeatureSet,
    floor: Floor,
    config: ComparisonConfig,
    which: str,
    compared: str,
) -> list[Measure]:
    """Measure how much images of the null token, `which`, resemble the real images `compared`."""
    few = config.largest_pairwise
    coverage = manifold_metrics(
        real=reference.sample(few, config.seed),
        generated=generated.sample(few, config.seed),
        k=config.neighbours,
    ).coverage
    distance = frechet_measure(
        f"fd_forgotten_{name}",
        measure_frechet(generated, reference, config),
        f"{which} and {compared}",
        floor,
    )
    reading = (
        "means that they do not resemble the deleted class. Nor does noise, which would score a UA of 1 too: "
        "compare with the oracle's value."
    )
    return [
        replace(distance, definition=f"{distance.definition} Large {reading}"),
        Measure.of(
            f"coverage_forgotten_{name}",
            coverage,
            f"Share of {compared} whose ball, to the k-th neighbour, holds one of {which}. Low {reading}",
            floor.manifold.coverage.value,
            floor.definition,
        ),
    ]


def _unlearning_accuracies(evidence: Evidence, recogniser: Recogniser, names: str) -> list[Measure]:
    classes = evidence.deletion.classes
    measures = []
    for state, samples in evidence.states.items():
        asked = samples.of_classes(classes)
        refused = not len(asked.images)
        images = samples.null.images if refused else asked.images
        if not len(images):  # Refused, and the network has no null class.
            continue
        how = (
            "requests for it are refused, so the images are those of the null token"
            if refused
            else "images asked for under it"
        )
        measures.append(
            Measure.of(
                f"unlearning_accuracy_{state}",
                unlearning_accuracy(recogniser.recognise(images), classes),
                f"UA, 1 - accuracy of the judge on the deleted class ({names}), from {len(images)} images "
                f"({state}; {how}). Compare with the oracle's value, not with 1: noise scores 1 too "
                "(fd_forgotten_null, coverage_forgotten_null).",
                1 - len(classes) / len(evidence.test.class_names),
                "images that show every class alike",
            )
        )
    return measures


def accuracy_per_class(
    recogniser: Recogniser, samples: SampleSet, class_names: Sequence[str]
) -> dict[str, float]:
    """Return, by class name, the share of the images asked for that the judge recognises."""
    table = confusion(recogniser, samples, class_names)
    return {
        name: row.get(name, 0) / sum(row.values()) for name, row in table.items() if name in set(class_names)
    }


def confusion(
    recogniser: Recogniser, samples: SampleSet, class_names: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Count images by the class asked for and the class recognised; zeros are left out of large tables."""
    asked = samples.conditional
    counts = confusion_counts(recogniser.recognise(asked.images), asked.labels, len(class_names))
    rows = {class_names[label]: counts[label] for label in np.flatnonzero(counts.sum(axis=1)).tolist()}
    if len(samples.null.images):
        rows[NULL_NAME] = np.bincount(recogniser.recognise(samples.null.images), minlength=len(class_names))
    few = len(class_names) <= _LARGEST_FULL_TABLE
    return {
        name: {known: int(count) for known, count in zip(class_names, row, strict=True) if few or count}
        for name, row in rows.items()
    }
