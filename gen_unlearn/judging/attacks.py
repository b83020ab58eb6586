"""Membership attacks on the denoisers of a run: on which images, in which states, with which scores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import IndexedImages, unique_ids
from gen_unlearn.judging.evidence import Deletion, of_classes, stratified_order
from gen_unlearn.judging.refitting import RefittableEnsemble
from gen_unlearn.metrics.attack_config import AttackConfig
from gen_unlearn.metrics.auc import auc_difference
from gen_unlearn.metrics.denoiser_attacks import ATTACKS, AttackName, attack_scores, epsilon_denoiser
from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.likelihood_ratio import likelihood_ratio_score
from gen_unlearn.metrics.membership import MembershipResult, membership_result
from gen_unlearn.metrics.protocol import MembershipConfig
from gen_unlearn.pipelines.denoising import NoisePredictor
from gen_unlearn.pipelines.lora_choice import AdapterRequest
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.sampling import GeneratorPipeline
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import among, keyed_order
from gen_unlearn.runs import RunFolder
from gen_unlearn.unlearned_runs import origin_of

Scores = dict[str, np.ndarray]
"""Attack -> score of each image, float64 ``(n,)``."""


@dataclass(frozen=True)
class ScoredImages:
    """What is scored: deleted images first, then held-out ones of their classes.

    Attributes:
        data: deleted images.
        held_out: images that no state was trained on.
    """

    data: IndexedImages
    held_out: IndexedImages

    @classmethod
    def choose(cls, deletion: Deletion, test: IndexedImages, largest: int) -> ScoredImages:
        """Choose at most `largest` deleted images, and as many held-out ones of the same classes.

        A separate source of held-out images may share images with the training source: these are left out.
        """
        data = deletion.images.select(keyed_order(deletion.images.ids, "membership")[:largest])
        comparable = of_classes(test, np.unique(data.labels).tolist())
        trained = unique_ids(np.concatenate([deletion.images.ids, deletion.retained.ids]))
        unseen = comparable.select(np.flatnonzero(~among(comparable.ids, trained)))
        return cls(data, unseen.select(stratified_order(unseen)[:largest]))

    @cached_property
    def pictures(self) -> np.ndarray:
        """All images, uint8 ``(n, h, w, c)``."""
        return np.concatenate([self.data.all_images(), self.held_out.all_images()])

    @property
    def pixels(self) -> torch.Tensor:
        """All images, float32 ``(n, c, h, w)`` in [-1, 1]."""
        return to_model_input(self.pictures)

    @property
    def labels(self) -> np.ndarray:
        """The class of each."""
        return np.concatenate([self.data.labels, self.held_out.labels])

    @property
    def keys(self) -> list[bytes]:
        """The sample id of each, which its noise follows from."""
        return [row.tobytes() for row in np.concatenate([self.data.ids, self.held_out.ids])]

    def result(self, scores: np.ndarray, seed: int) -> MembershipResult:
        """Compare the scores of the deleted images with those of the held-out ones."""
        count = len(self.data)
        return membership_result(scores[:count], self.data.labels, scores[count:], self.held_out.labels, seed)

    def difference(self, scores: np.ndarray, others: np.ndarray) -> Estimate:
        """Return the area under the curve of one model's scores minus that of another's."""
        count = len(self.data)
        return auc_difference(
            scores[:count],
            scores[count:],
            others[:count],
            others[count:],
            self.data.labels,
            self.held_out.labels,
        )


def pipelines_by_state(
    run: RunFolder, deleted: IndexedImages, ensemble: RefittableEnsemble | None = None
) -> dict[str, GeneratorPipeline]:
    """Return the run's model with all its images, without the deleted ones, and without as many others.

    The last is left out if there are not as many others. Nothing on disk changes.

    Args:
        run: the run; a model from which nothing can be deleted has the state ``after``, and ``before`` if it
            was unlearned approximately and the run it was made from is there.
        deleted: the deleted images, or those that are still to be had.
        ensemble: the run, if it is an adapter ensemble; without it, such a run has the state ``after`` alone.
    """
    if ensemble is not None:
        states: dict[str, GeneratorPipeline] = {"before": ensemble.before, "after": ensemble.pipeline}
        control = ensemble.without_others
        return states if control is None else states | {"random": control}
    after = run.load_pipeline()
    if not isinstance(after, SemiParametricDDPMPipeline) or after.exemplars is None:
        origin = origin_of(run)
        return {"after": after} if origin is None else {"before": origin.load_pipeline(), "after": after}
    full = ExemplarStore.from_pretrained(run.exemplars_path)
    full.add(deleted)
    stores = {"before": full, "after": after.exemplars}
    gone, others = unique_ids(deleted.ids), unique_ids(after.exemplars.ids)
    if len(gone) <= len(others):
        chosen = others[keyed_order(others, "random removal")[: len(gone)]]
        stores["random"] = ExemplarStore.from_pretrained(run.exemplars_path)
        stores["random"].add(deleted)
        stores["random"].delete(ForgetSet.from_ids(stores["random"], chosen, reason="control"))
    return {
        state: SemiParametricDDPMPipeline(after.unet, after.scheduler, exemplars, run.config.core.mode)
        for state, exemplars in stores.items()
    }


def attack_model(
    pipeline: GeneratorPipeline,
    images: ScoredImages,
    config: MembershipConfig,
    state: str,
    wanted: Collection[AttackName] = ATTACKS,
) -> Scores:
    """Run the attacks that need one model, those that are wanted, without guidance.

    Images of a class without exemplars are scored under the null token. An adapter ensemble scores each image
    with the adapter whose key is nearest among those that answer, with its class and without. Where no image
    is of another class, or the denoiser cannot do without one, ``clid``, which asks what the class adds to
    the null token, is left out. `state` is shown before the progress bar.
    """
    schedule, kind = pipeline.scheduler.alphas_cumprod, pipeline.scheduler.config.prediction_type
    has_null = not isinstance(pipeline, AdapterEnsembleDDPMPipeline) or pipeline.denoiser.has_null_class
    predictor = _predictors(pipeline, images, config)
    scores = attack_scores(
        _noised(pipeline, images),
        images.keys,
        lambda rows: epsilon_denoiser(predictor(rows, True), schedule, kind),
        schedule,
        scaled_attack(config.attack, len(schedule)),
        pipeline.unet.device,
        f"attack {state}",
        (lambda rows: epsilon_denoiser(predictor(rows, False), schedule, kind)) if has_null else None,
        wanted,
    )
    if "clid" in scores and not scores["clid"].any():
        del scores["clid"]
    return scores


def _predictors(
    pipeline: GeneratorPipeline, images: ScoredImages, config: MembershipConfig
) -> Callable[[slice, bool], NoisePredictor]:
    """Return what makes the predictor of some rows of the images, with their classes or without."""
    labels = images.labels.tolist()

    def asked(rows: slice, classes: bool) -> list[int | None]:
        return labels[rows] if classes else [None] * len(labels[rows])

    if isinstance(pipeline, SemiParametricDDPMPipeline):
        return lambda rows, classes: pipeline.noise_predictor(
            asked(rows, classes), config.exemplars_per_class, guidance_scale=1.0, on_empty_class="null"
        )
    if isinstance(pipeline, AdapterEnsembleDDPMPipeline):
        numbers = nearest_adapters(pipeline, images.pictures)
        return lambda rows, classes: pipeline.noise_predictor(
            asked(rows, classes), guidance_scale=1.0, adapters=numbers[rows]
        )
    return lambda rows, classes: pipeline.noise_predictor(asked(rows, classes), guidance_scale=1.0)


def nearest_adapters(pipeline: AdapterEnsembleDDPMPipeline, images: np.ndarray) -> np.ndarray:
    """Return the adapter with the nearest key, of those that answer, of uint8 images, int64 ``(n, 1)``."""
    request = AdapterRequest([None] * len(images), images, None, "route", 1, 0)
    return request.choose(pipeline.adapters, pipeline.router).numbers


def _noised(pipeline: GeneratorPipeline, images: ScoredImages) -> torch.Tensor:
    """Return what noise is added to: the images, or what an autoencoder makes of them."""
    if isinstance(pipeline, AdapterEnsembleDDPMPipeline):
        return pipeline.denoiser.encode(images.pictures).cpu()
    return images.pixels


def scaled_attack(attack: AttackConfig, timesteps: int) -> AttackConfig:
    """Return the attack with its timesteps, which are of 1000, scaled to another length of the schedule."""
    stride = max(1, round(attack.secmi_stride * timesteps / 1000))
    moves = round(attack.secmi_timestep * timesteps / 1000 / stride)
    return replace(
        attack,
        loss_timesteps=tuple(timestep * timesteps // 1000 for timestep in attack.loss_timesteps),
        secmi_timestep=stride * max(1, moves),
        secmi_stride=stride,
        pia_timestep=attack.pia_timestep * timesteps // 1000,
    )


def with_likelihood_ratios(scores: dict[str, Scores], of_oracles: Sequence[Scores]) -> dict[str, Scores]:
    """Add the attack that uses oracles as reference models; the first oracle has the others for that.

    Args:
        scores: state -> attack -> scores; the state ``oracle`` is the first oracle.
        of_oracles: attack -> scores of each oracle.
    """
    losses = [found["loss"] for found in of_oracles]
    complete = {}
    for state, found in scores.items():
        references = losses[1:] if state == "oracle" else losses
        complete[state] = dict(found)
        if references:
            ratio = likelihood_ratio_score(found["loss"], np.stack(references))
            complete[state]["likelihood_ratio"] = ratio
    return complete
