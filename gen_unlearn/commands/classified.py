"""Images that a classifier has classified, and what carried each prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gen_unlearn.pipelines.adapter_ensemble import AdapterEnsemblePipeline
from gen_unlearn.pipelines.classification import ClassificationPipeline, SemiParametricPipeline, Voters
from gen_unlearn.repro import ids_to_hex

_LISTED_CLASSES = 5


@dataclass(frozen=True)
class Voter:
    """An exemplar that carried a prediction.

    Attributes:
        id: its sample id, 32 hexadecimal digits.
        class_name: its class.
        weight: its share of the vote, 0 to 1, as `gen_unlearn.pipelines.classification.Voters` has it.
    """

    id: str
    class_name: str
    weight: float


@dataclass(frozen=True)
class Prediction:
    """What an image was classified as.

    Attributes:
        name: the image file; bytes that are not UTF-8 are escaped.
        class_name: the class with the highest probability; empty if no adapter answers.
        probability: of that class; 0 if no adapter answers.
        probabilities: the five classes with the highest probabilities above 0, best first.
        voters: the heaviest exemplars, heaviest first; none of a classifier without votes.
        all_probabilities: of every class in the order of the run's, float64 ``(classes,)``.
        label_only: whether the class alone is told, with probability 1, see
            `gen_unlearn.pipelines.adapter_ensemble.AdapterEnsemblePipeline.label_only`.
    """

    name: str
    class_name: str
    probability: float
    probabilities: tuple[tuple[str, float], ...]
    voters: tuple[Voter, ...]
    all_probabilities: np.ndarray = field(repr=False, compare=False)
    label_only: bool = False

    def facts(self) -> dict[str, Any]:
        """Return what JSON says of it; no probability, if the class alone is told."""
        return {
            "file": self.name,
            "class": self.class_name,
            "probability": None if self.label_only else self.probability,
            "probabilities": [
                {"class": name, "probability": share}
                for name, share in (() if self.label_only else self.probabilities)
            ],
            "voters": [
                {"id": voter.id, "class": voter.class_name, "weight": voter.weight} for voter in self.voters
            ],
        }


def classify(
    pipeline: ClassificationPipeline,
    class_names: tuple[str, ...],
    names: Sequence[str],
    images: np.ndarray,
    voters: int,
) -> list[Prediction]:
    """Classify a few images at once, and name who voted.

    Args:
        pipeline: a classifier.
        class_names: names of all its classes.
        names: what each image is called.
        images: uint8 ``(n, height, width, channels)``.
        voters: exemplars to name for each image at most.

    Raises:
        ValueError: no exemplar is left.
    """
    voted: list[tuple[Voter, ...]] = [()] * len(images)
    shares = pipeline.probabilities(images)
    label_only = isinstance(pipeline, AdapterEnsemblePipeline) and pipeline.label_only
    if isinstance(pipeline, SemiParametricPipeline):
        voted = [_named(found, class_names) for found in pipeline.voters(images, voters)]
    predictions = []
    for name, row, carried in zip(names, shares, voted, strict=True):
        best = np.argsort(-row, kind="stable")[:_LISTED_CLASSES]
        listed = tuple((class_names[label], float(row[label])) for label in best if row[label] > 0)
        first, probability = listed[0] if listed else ("", 0.0)
        predictions.append(Prediction(name, first, probability, listed, carried, row, label_only))
    return predictions


def _named(found: Voters, names: tuple[str, ...]) -> tuple[Voter, ...]:
    columns = ids_to_hex(found.ids), found.labels.tolist(), found.weights.tolist()
    return tuple(Voter(name, names[label], weight) for name, label, weight in zip(*columns, strict=True))
