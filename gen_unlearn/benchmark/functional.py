"""What a model still knows: a new head on its features, and how fast it learns again what it forgot."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from gen_unlearn.benchmark.forget_sets import ForgetCase
from gen_unlearn.benchmark.measures import Metrics
from gen_unlearn.benchmark.networks import BenchmarkNetwork
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.metrics.linear_probe import linear_probe
from gen_unlearn.metrics.relearning import (
    LabelledInputs,
    RelearnCurve,
    Relearning,
    compare_relearning,
    relearn,
)
from gen_unlearn.pixels import to_model_input

AFTER_STEPS = 10
"""Steps of relearning after which the accuracy on the forget set is reported."""

_SETTINGS = Relearning()
_BEFORE = Relearning(steps=1)  # of a curve whose start alone is of interest
_FEATURE_BATCH = 512
_MOST_IMAGES = 5000


@dataclass(frozen=True, eq=False)
class Functional:
    """Judge models of one training seed by training them further, all alike.

    Attributes:
        case: the images.
        original: the original of the seed.
        retrained: the retrained model of the seed.
        seed: of the order of images.
    """

    case: ForgetCase
    original: nn.Module
    retrained: nn.Module
    seed: int

    def measure(self, model: nn.Module) -> Metrics:
        """Return ``relearn.*``, and ``probe.linear`` where whole classes are forgotten."""
        curve = self._curve(model)
        compared = compare_relearning(curve, self._retrained_curve, self._original_loss)
        found = {f"relearn.acc.k{AFTER_STEPS}": float(curve.accuracy[AFTER_STEPS])}
        if compared.steps is not None:
            found["relearn.steps"] = float(compared.steps)
        if compared.ain is not None:
            found["relearn.ain"] = compared.ain
        gone = np.setdiff1d(self.case.forget_images.labels, self.case.retain_images.labels).tolist()
        if gone and isinstance(model, BenchmarkNetwork):
            train, test = self.case.splits.train, self.case.splits.test
            found["probe.linear"] = linear_probe(
                features_of(model, train), train.labels, features_of(model, test), test.labels, gone
            ).forgotten.value
        return found

    def _curve(self, model: nn.Module, settings: Relearning = _SETTINGS) -> RelearnCurve:
        forget, retain = self._images
        return relearn(model, forget, retain, settings, seed=self.seed)

    @cached_property
    def _images(self) -> tuple[LabelledInputs, LabelledInputs]:
        return _inputs(self.case.forget_images), _inputs(self.case.retain_images)

    @cached_property
    def _retrained_curve(self) -> RelearnCurve:
        return self._curve(self.retrained)

    @cached_property
    def _original_loss(self) -> float:
        return float(self._curve(self.original, _BEFORE).loss[0])


def features_of(network: BenchmarkNetwork, images: IndexedImages) -> np.ndarray:
    """Return the input of the head for every image, in evaluation mode, float32 ``(n, features)``."""
    device, training = next(network.parameters()).device, network.training
    network.eval()
    pixels = images.all_images()
    with torch.no_grad():
        parts = [
            network.features(to_model_input(pixels[start : start + _FEATURE_BATCH]).to(device)).cpu()
            for start in range(0, len(images), _FEATURE_BATCH)
        ]
    network.train(training)
    return torch.cat(parts).float().numpy()


def _inputs(images: IndexedImages) -> LabelledInputs:
    """Return at most 5,000 images as a model takes them."""
    few = images.select(np.arange(min(len(images), _MOST_IMAGES)))
    return LabelledInputs(to_model_input(few.all_images()), torch.from_numpy(few.labels))
