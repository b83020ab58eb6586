"""Which classes are generated: how much of a deleted one is left, and what is taken for what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gen_unlearn.judging.evidence import Evidence, Recogniser
from gen_unlearn.metrics.forgetting import (
    class_probability,
    class_share,
    confusion_counts,
    forgotten_class_rate,
    prediction_entropy,
    unlearning_accuracy,
)
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.samples import SampleSet

NULL_NAME = "null token"

_LARGEST_FULL_TABLE = 100
"""Classes up to which a table of confusions names every class in every row."""


def measure_forgetting(evidence: Evidence, recogniser: Recogniser, images_per_class: int) -> list[Measure]:
    """Measure how often a deleted class is still generated; nothing if no whole class was deleted."""
    classes = evidence.deletion.classes
    if not classes:
        return []
    names = ", ".join(evidence.test.class_names[label] for label in classes)
    return [
        *_rates(evidence, recogniser, images_per_class, names),
        *_null_token(evidence, recogniser, names),
        *_unlearning_accuracies(evidence, recogniser, names),
    ]


def _rates(evidence: Evidence, recogniser: Recogniser, images_per_class: int, names: str) -> list[Measure]:
    classes, retained = evidence.deletion.classes, evidence.deletion.retained_classes
    mistaken = class_share(recogniser.recognise(evidence.held_out.all_images()), classes)
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
                mistaken.value * len(retained) / len(classes),
                "what the judge's mistakes on real images of the retained classes would give",
            )
        )
    return measures


def _null_token(evidence: Evidence, recogniser: Recogniser, names: str) -> list[Measure]:
    classes = evidence.deletion.classes
    chance = len(classes) / len(evidence.test.class_names)
    measures = []
    for state, name in (("after", "null"), ("oracle", "null_oracle")):
        if state not in evidence.states:
            continue
        probabilities = recogniser.probabilities(evidence.states[state].null.images)
        which = f"{len(probabilities)} images sampled from the null token, without any exemplar ({state})"
        measures += [
            Measure.of(
                f"forgotten_class_rate_{name}",
                class_share(probabilities.argmax(axis=1), classes),
                f"Share of {which}, that the judge recognises as the deleted class ({names}): the part of "
                "the class that lives in the weights.",
                chance,
                "chance level; the oracle's value shows what weights give that never saw the class",
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
                prediction_entropy(recogniser.probabilities(evidence.held_out.all_images())).value,
                "held-out real images of the retained classes",
            ),
        ]
    return measures


def _unlearning_accuracies(evidence: Evidence, recogniser: Recogniser, names: str) -> list[Measure]:
    classes = evidence.deletion.classes
    measures = []
    for state, samples in evidence.states.items():
        asked = samples.of_classes(classes)
        refused = not len(asked.images)
        images = samples.null.images if refused else asked.images
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
                f"({state}; {how}). Compare with the oracle's value, not with 1: noise scores 1 too.",
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
