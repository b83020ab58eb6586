"""The measures of an evaluation, each with its error, its floor and its definition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gen_unlearn.data import IndexedImages
from gen_unlearn.metrics.copying import CopyDistances, copy_distances
from gen_unlearn.metrics.estimate import Estimate, proportion
from gen_unlearn.metrics.features import FeatureStats, MeasurementProtocol, extract_features
from gen_unlearn.metrics.forgetting import class_share, forgotten_class_rate, label_accuracy
from gen_unlearn.metrics.frechet import frechet_distance, frechet_standard_error
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.repro import keyed_order
from gen_unlearn.runs import RunFolder
from gen_unlearn.samples import SampleSet
from gen_unlearn.training.classifier import JudgeClassifier, JudgeFeatures, predict

_LARGEST_COPY_TEST = 1000


@dataclass(frozen=True)
class Deletion:
    """What was deleted from a run, as the evaluation sees it.

    Attributes:
        classes: classes that were in the exemplars before and are not now.
        retained_classes: classes that have exemplars now; all classes of a plain model.
        images: the deleted training images; empty if the source no longer has them.
        retained: the training images that were not deleted.
    """

    classes: tuple[int, ...]
    retained_classes: tuple[int, ...]
    images: IndexedImages
    retained: IndexedImages


@dataclass(frozen=True)
class Evidence:
    """What an evaluation compares.

    Attributes:
        states: state (``before``, ``after``, ``oracle``) -> generated images.
        oracle_again: images of the oracle with other noise, as many as under ``oracle``.
        deletion: what was deleted.
        test: the held-out images.
    """

    states: dict[str, SampleSet]
    oracle_again: SampleSet | None
    deletion: Deletion
    test: IndexedImages


class Judge:
    """The independent classifier: recognises classes and gives the features of the Frechet distance."""

    def __init__(self, model: JudgeClassifier) -> None:
        self.model = model
        self.extractor = JudgeFeatures(model)

    def recognise(self, images: np.ndarray) -> np.ndarray:
        """Return the most likely class of uint8 images, int64 ``(n,)``."""
        return predict(self.model, images)

    def distance(self, images: np.ndarray, reference: np.ndarray) -> tuple[float, float | None]:
        """Return the Frechet distance of two sets of uint8 images, and its standard error.

        The error is that of the first set, from as many images as the features have dimensions; `None` below.
        """
        features = extract_features(self.extractor, images)
        reference_stats = self._stats(extract_features(self.extractor, reference), reference)
        value = frechet_distance(self._stats(features, images), reference_stats)
        if len(features) <= self.extractor.dim:
            return value, None
        return value, frechet_standard_error(features, reference_stats)

    def _stats(self, features: np.ndarray, images: np.ndarray) -> FeatureStats:
        return FeatureStats.from_features(features, MeasurementProtocol.of(self.extractor, images))


def measure_quality(judge: Judge, evidence: Evidence) -> list[Measure]:
    """Measure Frechet distances and label accuracy on the retained classes, for every state."""
    deletion = evidence.deletion
    classes = deletion.retained_classes
    test = _of_classes(evidence.test, classes)
    reference = test.all_images()
    real = _of_classes(deletion.retained, classes)
    generated = len(next(iter(evidence.states.values())).of_classes(classes).images)
    real = real.select(stratified_order(real)[:generated])
    floor, _ = judge.distance(real.all_images(), reference)
    best = label_accuracy(judge.recognise(reference), test.labels, classes)
    distances, accuracies = [], []
    for state, samples in evidence.states.items():
        retained = samples.of_classes(classes)
        value, error = judge.distance(retained.images, reference)
        distances.append(
            Measure(
                f"fd_retain_{state}",
                value,
                f"Frechet distance between {len(retained.images)} generated images of the retained classes "
                f"({state}) and the {len(reference)} held-out real images of these classes. 0 means equal "
                "means and covariances of features.",
                error,
                floor,
                f"{len(real)} retained training images, which the judge was fit on, in their place",
            )
        )
        accuracies.append(
            Measure.of(
                f"retained_accuracy_{state}",
                label_accuracy(judge.recognise(retained.images), retained.labels, classes),
                f"Share of the images asked for under a retained class ({state}) that the judge recognises "
                f"as that class. Chance is {1 / len(evidence.test.class_names):.0%}.",
                best.value,
                "the judge's accuracy on the held-out real images of these classes: the best to expect",
            )
        )
    return [*distances, *_distances_to_oracle(judge, evidence), *accuracies]


def _distances_to_oracle(judge: Judge, evidence: Evidence) -> list[Measure]:
    """Measure FID_O of arXiv 2603.22870: the distance between a model's samples and the oracle's."""
    if evidence.oracle_again is None:
        return []
    classes = evidence.deletion.retained_classes
    fresh = evidence.oracle_again.of_classes(classes).images
    floor, _ = judge.distance(evidence.states["oracle"].of_classes(classes).images, fresh)
    measures = []
    for state, name in (("before", "fd_to_oracle_before"), ("after", "fd_to_oracle")):
        if state not in evidence.states:
            continue
        images = evidence.states[state].of_classes(classes).images
        value, error = judge.distance(images, fresh)
        measures.append(
            Measure(
                name,
                value,
                f"Frechet distance between {len(images)} images of the retained classes ({state}) and as "
                "many of the oracle, the model retrained without the deleted images, from other noise (FID_O "
                "of the paper, in the judge's features).",
                error,
                floor,
                "the oracle against itself from other noise: sampling noise alone, not that of retraining",
            )
        )
    return measures


def measure_forgetting(judge: Judge, evidence: Evidence, images_per_class: int) -> list[Measure]:
    """Measure how often a deleted class is still generated; nothing if no whole class was deleted."""
    classes, retained = evidence.deletion.classes, evidence.deletion.retained_classes
    if not classes:
        return []
    names = ", ".join(evidence.test.class_names[label] for label in classes)
    mistaken = class_share(judge.recognise(_of_classes(evidence.test, retained).all_images()), classes)
    measures = []
    for state, samples in evidence.states.items():
        asked = samples.conditional
        measures.append(
            Measure.of(
                f"forgotten_class_rate_{state}",
                forgotten_class_rate(judge.recognise(asked.images), asked.labels, classes, images_per_class),
                f"Images recognised as the deleted class ({names}) when every class is asked for "
                f"{images_per_class} times ({state}), whatever class they were asked for under, per image "
                "asked for under the deleted class: 1 is a generator that obeys. A refused request yields no "
                "image.",
                mistaken.value * len(retained) / len(classes),
                "what the judge's mistakes on real images of the retained classes would give",
            )
        )
    chance = len(classes) / len(evidence.test.class_names)
    for state, name in (("after", "null"), ("oracle", "null_oracle")):
        if state not in evidence.states:
            continue
        predicted = judge.recognise(evidence.states[state].null.images)
        measures.append(
            Measure.of(
                f"forgotten_class_rate_{name}",
                class_share(predicted, classes),
                f"Share of {len(predicted)} images sampled from the null token, without any exemplar "
                f"({state}), that the judge recognises as the deleted class ({names}): the part of the "
                "class that lives in the weights.",
                chance,
                "chance level; the oracle's value shows what weights give that never saw the class",
            )
        )
    return measures


def measure_copies(evidence: Evidence) -> list[Measure]:
    """Measure how near generated images come to the deleted ones."""
    if not len(evidence.deletion.images):
        return []
    measures = []
    for state, samples in evidence.states.items():
        found = nearest_to_deleted(samples, evidence.deletion)
        nearest = _median(found.forgotten_distance)
        measures.append(
            Measure.of(
                f"nearest_deleted_{state}",
                nearest,
                f"Median distance from a deleted image to the nearest of {len(samples.images)} generated "
                f"images ({state}), over {len(found.forgotten_distance)} deleted images. Euclidean over "
                "pixels in [0, 1].",
                _median(found.control_distance).value,
                f"the same for {len(found.control_distance)} retained training images",
            )
        )
    return measures


def nearest_to_deleted(samples: SampleSet, deletion: Deletion) -> CopyDistances:
    """Find the generated images nearest to deleted images and to as many retained ones, up to 1,000."""
    deleted, retained = deletion.images, deletion.retained
    chosen = keyed_order(deleted.ids, "copy test")[:_LARGEST_COPY_TEST]
    control = keyed_order(retained.ids, "copy test")[: len(chosen)]
    return copy_distances(samples.images, deleted.images[chosen], retained.images[control])


def measure_costs(run: RunFolder) -> list[Measure]:
    """Report what training and deleting took."""
    training, receipts = run.manifest.training, run.receipts()
    measures = []
    if training is not None:
        measures.append(
            Measure(
                "seconds_train", training.seconds, f"Seconds to train on {training.images:,} images shown."
            )
        )
    if receipts:
        measures.append(
            Measure(
                "seconds_delete",
                sum(receipt.seconds for receipt in receipts),
                f"Seconds to prepare the deletion of {sum(r.removed for r in receipts)} images in "
                f"{len(receipts)} requests on disk: shards read, written and flushed, with their digests.",
            )
        )
    return measures


def accuracy_per_class(judge: Judge, samples: SampleSet, class_names: Sequence[str]) -> dict[str, float]:
    """Return, by class name, the share of the images asked for that the judge recognises."""
    asked = samples.conditional
    right = judge.recognise(asked.images) == asked.labels
    return {
        class_names[label]: proportion(
            int(right[asked.labels == label].sum()), int((asked.labels == label).sum())
        ).value
        for label in np.unique(asked.labels)
    }


def stratified_order(data: IndexedImages) -> np.ndarray:
    """Order rows so that any first part has the classes in the proportions of the whole, by a hash within."""
    order = keyed_order(data.ids, "floor")
    counts = np.bincount(data.labels)
    depth = np.empty(len(data))
    for label in np.unique(data.labels):
        rows = order[data.labels[order] == label]
        depth[rows] = (np.arange(len(rows)) + 0.5) / counts[label]
    return np.argsort(depth, kind="stable")


def _of_classes(data: IndexedImages, classes: Sequence[int]) -> IndexedImages:
    return data.select(np.flatnonzero(np.isin(data.labels, classes)))


def _median(distances: np.ndarray) -> Estimate:
    """Return a median and its standard error, ``1.2533 sd / sqrt(n)`` (normal case)."""
    return Estimate(
        float(np.median(distances)), 1.2533 * float(np.std(distances)) / math.sqrt(len(distances))
    )
