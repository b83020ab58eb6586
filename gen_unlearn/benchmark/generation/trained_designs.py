"""Generators in memory that images can be deleted from: what they sample, and how images leave them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.serving import ServedAdapters, count_members
from gen_unlearn.benchmark.trained_designs import require_deletable
from gen_unlearn.commands.trained_ensemble import TrainedEnsemble
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Cost
from gen_unlearn.methods.clock import Clock
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.receipts import Level


@dataclass(frozen=True)
class TrainedSemiParametric:
    """A semi-parametric generator with its exemplars.

    Attributes:
        pipeline: the generator, which is deleted from.
        core_ids: of the public core, uint8 ``(n, 16)``.
        level: what its deletions promise.
        passes: of images through the network, to train it.
    """

    pipeline: SemiParametricDDPMPipeline
    core_ids: np.ndarray
    level: Level
    passes: int

    def delete(self, forget: ForgetSet) -> Cost:
        """Delete exemplars: no image passes a network.

        Raises:
            ValueError: an id that is not held, or of the public core; nothing is deleted.
        """
        require_deletable(forget, self.core_ids)
        clock = Clock(self.pipeline.unet.device)
        self.pipeline.delete(forget)
        return Cost(0, 0, clock.seconds())


@dataclass(frozen=True)
class TrainedLoraEnsemble:
    """An adapter ensemble that generates, with its records.

    Attributes:
        pipeline: the generator, with the adapters that `ensemble` has.
        ensemble: what is deleted from.
        core_ids: of the public core, uint8 ``(n, 16)``.
        passes: of images through the denoiser, to train it and its adapters.
    """

    pipeline: AdapterEnsembleDDPMPipeline
    ensemble: AdapterEnsemble
    core_ids: np.ndarray
    passes: int

    @classmethod
    def of(
        cls, trained: TrainedEnsemble, deletable: IndexedImages, core_ids: np.ndarray, backbone: int
    ) -> TrainedLoraEnsemble:
        """Take over an ensemble that was trained.

        Args:
            trained: the ensemble of a generator.
            deletable: the images of its records, some of them perhaps repeated.
            core_ids: of the public core, uint8 ``(n, 16)``.
            backbone: passes of images to train the backbone.
        """
        pipeline = trained.network
        assert isinstance(pipeline, AdapterEnsembleDDPMPipeline), "it generates"
        records, routes = Records.of_rows(trained.exemplars, trained.recipe.shape.features)
        ensemble = AdapterEnsemble(trained.recipe, records, routes, trained.adapters)
        if pipeline.denoiser.exemplars_per_image:
            pipeline.register_modules(exemplars=ExemplarStore.from_images(deletable))
        fitted = trained.recipe.visits([ensemble.members[adapter] for adapter in sorted(trained.members)])
        made = cls(pipeline, ensemble, core_ids, backbone + fitted)
        made._serve()
        _ = made.level  # It is tried out once, which is not to count for the first deletion.
        return made

    @property
    def level(self) -> Level:
        """What its deletions promise, as adapters come out on this machine."""
        return self.ensemble.level

    def delete(self, forget: ForgetSet) -> Cost:
        """Delete records, and train the adapters that they were routed to again.

        Returns:
            Seconds, and how often images passed the denoiser, forward and backward, to train them.

        Raises:
            ValueError: an id that is not held, or of the public core; nothing is deleted.
        """
        require_deletable(forget, self.core_ids)
        ensemble, exemplars = self.ensemble, self.pipeline.exemplars
        touched = ensemble.touched(forget).tolist()
        clock = Clock(self.pipeline.unet.device)
        ensemble.delete(forget)
        if exemplars is not None:
            exemplars.delete(forget)
        self._serve()
        seconds = clock.seconds()
        passed = ensemble.recipe.visits([ensemble.members[adapter] for adapter in touched])
        return Cost(passed, passed, seconds)

    def _serve(self) -> None:
        """Let the pipeline answer with the adapters that there are now."""
        ensemble = self.ensemble
        records, routes = ensemble.left
        classes = len(ensemble.recipe.class_names)
        members = count_members(records.labels, routes, len(ensemble.members), classes)
        self.pipeline.adapters = ServedAdapters(ensemble.states, members)
