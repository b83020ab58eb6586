"""What a classifier predicts before and after a deletion, and how often that is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gen_unlearn.data import IndexedImages
from gen_unlearn.metrics.estimate import Estimate, proportion
from gen_unlearn.metrics.forgetting import confusion_counts
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.pipelines.adapter_ensemble import AdapterEnsemblePipeline
from gen_unlearn.pipelines.classification import ClassificationPipeline
from gen_unlearn.shared_rows import shared_rows

SETS = {
    "forget": "deleted images",
    "retain": "retained training images",
    "test": "held-out images of the retained classes",
    "forget_class_test": "held-out images of the classes that nothing is retained of",
    "held_out": "held-out images of all classes",
}
"""Sets of images that predictions are compared on, and what they are."""

STATES = ("before", "after", "oracle", "parametric")
"""Models that are compared: as it was and is, and retrained with and without exemplars."""

_WITHOUT_ACCURACY = ("held_out",)
"""Sets that mix classes which are retained with others which are not."""

_LARGEST_FULL_TABLE = 100
"""Classes up to which a table of confusions names every class in every row."""


@dataclass(frozen=True)
class JudgedImages:
    """The images that the models of an evaluation classify; any of the three parts may be empty.

    Attributes:
        forget: the deleted images that the source still holds.
        retain: retained training images.
        held_out: the images held out for testing.
        retained_classes: classes that something is retained of.
    """

    forget: IndexedImages
    retain: IndexedImages
    held_out: IndexedImages
    retained_classes: tuple[int, ...]

    def by_set(self, forget: np.ndarray, retain: np.ndarray, held_out: np.ndarray) -> dict[str, np.ndarray]:
        """Sort one array for each part, with a row per image, into `SETS`; empty ones are left out."""
        kept = np.isin(self.held_out.labels, self.retained_classes)
        parts = (forget, retain, held_out[kept], held_out[~kept], held_out)
        return {name: rows for name, rows in zip(SETS, parts, strict=True) if len(rows)}

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """The classes of each set, int64 ``(n,)``."""
        return self.by_set(self.forget.labels, self.retain.labels, self.held_out.labels)

    def classified_by(self, pipeline: ClassificationPipeline) -> dict[str, np.ndarray]:
        """Return the probabilities that a model gives in each set, float64 ``(n, classes)``.

        Several processes share the images, batch by batch, and all get all probabilities. These are equal for
        all classes where no adapter of an ensemble answers. Adapters that are held back are judged by all
        their scores, which are not published.

        Raises:
            ValueError: no exemplar is left.
        """
        classes = len(self.held_out.class_names)
        if isinstance(pipeline, AdapterEnsemblePipeline):
            pipeline = pipeline.with_all_scores()
        return self.by_set(
            *(
                _answered(_probabilities(pipeline, part)) if len(part) else np.empty((0, classes))
                for part in (self.forget, self.retain, self.held_out)
            )
        )


def _probabilities(pipeline: ClassificationPipeline, part: IndexedImages) -> np.ndarray:
    """Classify images, in the batches that the pipeline would make of them."""
    return shared_rows(
        len(part),
        pipeline.prediction.batch_size,
        lambda rows: pipeline.probabilities(part.images[np.arange(rows.start, rows.stop)]),
        "classify",
    )


def _answered(probabilities: np.ndarray) -> np.ndarray:
    """Return probabilities, float64 ``(n, classes)``, equal ones in the place of rows of zeros."""
    return np.where(probabilities.any(axis=1, keepdims=True), probabilities, 1 / probabilities.shape[1])


def unanswered(probabilities: np.ndarray) -> np.ndarray:
    """Tell which rows of probabilities ``(n, classes)`` prefer no class: bool ``(n,)``."""
    return probabilities.max(axis=1, initial=0) == probabilities.min(axis=1, initial=1)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the models of each state predict for the same images.

    Attributes:
        labels: set of `SETS` -> classes, int64 ``(n,)``; an empty set is left out.
        states: state of `STATES` -> the predictions of each of its models, one or more: set ->
            probabilities, float64 ``(n, classes)``.
        class_names: names of all classes.
    """

    labels: dict[str, np.ndarray]
    states: dict[str, tuple[dict[str, np.ndarray], ...]]
    class_names: tuple[str, ...]

    def of(self, state: str, name: str) -> list[np.ndarray]:
        """Return the probabilities that each model of a state gives in a set; none of an absent state."""
        return [predicted[name] for predicted in self.states.get(state, ())]


def measure_accuracies(predictions: Predictions) -> list[Measure]:
    """Measure the accuracy of each state in each set, beside that of the oracles if there are any."""
    measures = []
    for name, labels in predictions.labels.items():
        if name in _WITHOUT_ACCURACY:
            continue
        oracles = predictions.of("oracle", name)
        floor = mean_accuracy(oracles, labels).value if oracles else None
        for state in predictions.states:
            pool = predictions.of(state, name)
            measures.append(
                Measure.of(
                    f"accuracy_{name}_{state}",
                    mean_accuracy(pool, labels),
                    f"Share of {len(labels)} {SETS[name]} that are classified right ({_text(state, pool)}). "
                    f"{_reading(name)}",
                    floor,
                    ""
                    if floor is None
                    else f"what retraining without the deleted images gives: the mean of "
                    f"{len(oracles)} oracles",
                )
            )
    return measures


def mean_accuracy(pool: Sequence[np.ndarray], labels: np.ndarray) -> Estimate:
    """Estimate the accuracy of models on the same images.

    Of one model the standard error is that of other images; of several it is that of other training seeds,
    ``std / sqrt(models)``.

    Args:
        pool: probabilities of each model, one or more of shape ``(n, classes)``.
        labels: the classes, int64 ``(n,)``.
    """
    right = [
        int(((probabilities.argmax(axis=1) == labels) & ~unanswered(probabilities)).sum())
        for probabilities in pool
    ]
    if len(right) == 1:
        return proportion(right[0], len(labels))
    shares = np.array(right) / len(labels)
    return Estimate(float(shares.mean()), float(shares.std(ddof=1)) / math.sqrt(len(shares)))


def confusion(predictions: Predictions, state: str) -> dict[str, dict[str, int]]:
    """Count held-out images by their class and the class predicted, over all models of a state.

    Classes without a held-out image have no row; above 100 classes zeros are left out.
    """
    names, labels = predictions.class_names, predictions.labels.get("held_out")
    if labels is None:
        return {}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for probabilities in predictions.of(state, "held_out"):
        counts += confusion_counts(probabilities.argmax(axis=1), labels, len(names))
    few = len(names) <= _LARGEST_FULL_TABLE
    return {
        names[label]: {
            name: int(count) for name, count in zip(names, counts[label], strict=True) if few or count
        }
        for label in np.unique(labels).tolist()
    }


def accuracy_per_class(predictions: Predictions, state: str) -> dict[str, float]:
    """Return, by class name, the share of held-out images that the models of a state classify right."""
    table = confusion(predictions, state)
    return {name: row.get(name, 0) / sum(row.values()) for name, row in table.items()}


def _text(state: str, pool: Sequence[np.ndarray]) -> str:
    """Say what the models of a state are."""
    match state:
        case "before":
            return "before: the deleted images are among the exemplars"
        case "oracle":
            return f"oracle: {_mean_of(len(pool))} retrained without the deleted images"
        case "parametric":
            return (
                f"parametric: {_mean_of(len(pool))} without exemplars, retrained without the deleted images"
            )
        case _:
            return state


def _mean_of(models: int) -> str:
    return "one model" if models == 1 else f"mean of {models} models of different training seeds, all"


def _reading(name: str) -> str:
    """Say what the accuracy in a set should be."""
    match name:
        case "forget":
            return (
                "Forgetting means the accuracy of the oracle, which has never seen them and may still be "
                "right about them; lower is not better."
            )
        case "forget_class_test":
            return "0 for every model that votes by exemplars: a class without one is never predicted."
        case _:
            return "A deletion should leave it where the oracle has it."
