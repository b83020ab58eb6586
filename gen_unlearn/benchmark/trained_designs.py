"""Our own models in memory, trained for the benchmark: what they answer, and how images leave them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Cost
from gen_unlearn.methods.sisa import Sisa
from gen_unlearn.pipelines.adapter_ensemble import AdapterEnsemblePipeline
from gen_unlearn.pipelines.classification import SemiParametricPipeline

_SMALLEST_PROBABILITY = 1e-12


class TrainedDesign(Protocol):
    """A model that images can be deleted from."""

    def delete(self, forget: ForgetSet) -> Cost:
        """Delete images; return the seconds it took, and the samples that passed a network.

        Raises:
            ValueError: an id that is not held, or of the public core; nothing is deleted.
        """

    def logits(self, images: IndexedImages) -> np.ndarray:
        """Return log-probabilities of the classes, finite float64 ``(n, classes)``."""


@dataclass(frozen=True)
class TrainedVote:
    """A semi-parametric classifier with its exemplars.

    Attributes:
        pipeline: answers, and is deleted from.
        core_ids: of the public core, uint8 ``(n, 16)``.
    """

    pipeline: SemiParametricPipeline
    core_ids: np.ndarray

    def delete(self, forget: ForgetSet) -> Cost:
        """Delete exemplars: no network is asked. See `TrainedDesign`."""
        require_deletable(forget, self.core_ids)
        return _timed(lambda: self.pipeline.delete(forget))

    def logits(self, images: IndexedImages) -> np.ndarray:
        """Return log-probabilities, at least that of 1e-12, see `TrainedDesign`."""
        return _finite_logs(self.pipeline.probabilities(images.images))


@dataclass(frozen=True)
class TrainedLegoNet:
    """An adapter ensemble with its records.

    Attributes:
        pipeline: the encoder and how answers are made; its adapters are those before deletions.
        ensemble: what is deleted from.
        core_ids: of the public core, uint8 ``(n, 16)``.
    """

    pipeline: AdapterEnsemblePipeline
    ensemble: AdapterEnsemble
    core_ids: np.ndarray

    def delete(self, forget: ForgetSet) -> Cost:
        """Delete records and rebuild the heads they were routed to. See `TrainedDesign`."""
        require_deletable(forget, self.core_ids)
        return _timed(lambda: self.ensemble.delete(forget))

    def logits(self, images: IndexedImages) -> np.ndarray:
        """Return log-probabilities, at least that of 1e-12, see `TrainedDesign`."""
        serving = self.pipeline.with_adapters(self.ensemble.states)
        return _finite_logs(serving.probabilities(images.images))


@dataclass(frozen=True)
class TrainedSisa:
    """A SISA ensemble.

    Attributes:
        sisa: is trained again after a deletion, as far as it must.
    """

    sisa: Sisa

    def delete(self, forget: ForgetSet) -> Cost:
        """Delete images and train the affected shards from the slice on. See `TrainedDesign`."""
        before = self.sisa.budget.cost
        cost = _timed(lambda: self.sisa.delete(forget))
        after = self.sisa.budget.cost
        return Cost(
            after.forward_samples - before.forward_samples,
            after.backward_samples - before.backward_samples,
            cost.seconds,
        )

    def logits(self, images: IndexedImages) -> np.ndarray:
        """Return log-probabilities, see `TrainedDesign`."""
        return self.sisa.log_probabilities(images)


def require_deletable(forget: ForgetSet, core_ids: np.ndarray) -> None:
    """Raise a ValueError if an image to forget is in the public core, uint8 ``(n, 16)``."""
    public = int(forget.mask(core_ids).sum())
    if public:
        raise ValueError(
            f"{public} of {len(forget)} images to forget are in the public core, which is never forgotten; "
            "choose others with core_of; nothing was deleted"
        )


def _timed(delete: Callable[[], object]) -> Cost:
    """Return the seconds that a deletion without a network takes."""
    started = time.perf_counter()
    delete()
    return Cost(0, 0, time.perf_counter() - started)


def _finite_logs(probabilities: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.maximum(probabilities, _SMALLEST_PROBABILITY)))
