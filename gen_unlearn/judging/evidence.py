"""What a judgement of a generator rests on: samples, real images, and who says what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from gen_unlearn.data import IndexedImages
from gen_unlearn.image_sets import ImageArray, IndexedImageSet
from gen_unlearn.judging.wording import EXEMPLARS, Wording
from gen_unlearn.metrics.feature_sets import FeatureSet, measure_features
from gen_unlearn.metrics.features import FeatureExtractor
from gen_unlearn.repro import digest_arrays, keyed_order
from gen_unlearn.samples import SampleSet
from gen_unlearn.training.classifier import JudgeClassifier, predict_probabilities


@dataclass(frozen=True)
class Deletion:
    """What was deleted from a run, as the evaluation sees it.

    Attributes:
        classes: classes that had deletable images before and have none now.
        retained_classes: classes that have some now; all classes of a plain model.
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
        states: state (``before``, ``after``, ``oracle``) -> generated images; ``oracle`` is the first one.
        oracles: images of each oracle, with the noise of the other states.
        oracles_again: images of each oracle with other noise, as many.
        deletion: what was deleted.
        test: the held-out images.
        words: what the measures call the model.
    """

    states: dict[str, SampleSet]
    oracles: tuple[SampleSet, ...]
    oracles_again: tuple[SampleSet, ...]
    deletion: Deletion
    test: IndexedImages
    words: Wording = EXEMPLARS

    @cached_property
    def held_out(self) -> IndexedImages:
        """The held-out images of the retained classes: what every state is compared with."""
        return of_classes(self.test, self.deletion.retained_classes)

    @cached_property
    def retained(self) -> IndexedImages:
        """The training images of the retained classes that were not deleted."""
        return of_classes(self.deletion.retained, self.deletion.retained_classes)

    @cached_property
    def forgotten_held_out(self) -> IndexedImages:
        """The held-out images of the deleted classes."""
        return of_classes(self.test, self.deletion.classes)

    def retained_samples(self, state: str) -> SampleSet:
        """Return the images of a state that were asked for under a retained class."""
        return self.states[state].of_classes(self.deletion.retained_classes)


@dataclass(frozen=True, eq=False)
class Recogniser:
    """The independent classifier that says what an image shows; it looks at the same images once."""

    model: JudgeClassifier
    _known: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def recognise(self, images: np.ndarray) -> np.ndarray:
        """Return the most likely class of uint8 images, int64 ``(n,)``."""
        return self.probabilities(images).argmax(axis=1)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the probability of each class for uint8 images, float64 ``(n, classes)``."""
        if not len(images):
            return np.empty((0, self.model.config.num_classes))
        key = digest_arrays(images)
        if key not in self._known:
            self._known[key] = predict_probabilities(self.model, images)
        return self._known[key]


@dataclass(frozen=True, eq=False)
class Measurer:
    """Extract features; those of the same images once.

    Attributes:
        extractor: see `FeatureExtractor`.
        cache: folder that features are kept in from one evaluation to the next; `None` for none.
    """

    extractor: FeatureExtractor
    cache: Path | None = None
    _known: dict[str, FeatureSet] = field(default_factory=dict, repr=False)

    def features(self, name: str, images: np.ndarray) -> FeatureSet:
        """Return the features of uint8 images ``(n, height, width, channels)``."""
        key = digest_arrays(images)
        if key not in self._known:
            self._known[key] = measure_features(ImageArray(name, images), self.extractor, self.cache)
        return self._known[key]

    def features_of(self, name: str, data: IndexedImages) -> FeatureSet:
        """Return the features of images that may not fit in memory: they are decoded one at a time."""
        key = digest_arrays(data.ids)
        if key not in self._known:
            self._known[key] = measure_features(IndexedImageSet(name, data), self.extractor, self.cache)
        return self._known[key]


def of_classes(data: IndexedImages, classes: Sequence[int]) -> IndexedImages:
    """Return the images of some classes."""
    return data.select(np.flatnonzero(np.isin(data.labels, classes)))


def in_proportion(data: IndexedImages, count: int) -> IndexedImages:
    """Return `count` images, or all if there are fewer, with the classes in the proportions of the whole."""
    return data.select(stratified_order(data)[:count])


def stratified_order(data: IndexedImages) -> np.ndarray:
    """Order rows so that any first part has the classes in the proportions of the whole, by a hash within."""
    order = keyed_order(data.ids, "floor")
    counts = np.bincount(data.labels)
    depth = np.empty(len(data))
    for label in np.unique(data.labels):
        rows = order[data.labels[order] == label]
        depth[rows] = (np.arange(len(rows)) + 0.5) / counts[label]
    return np.argsort(depth, kind="stable")
