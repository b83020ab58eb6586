"""Whether the denoiser remembers the deleted images: membership attacks before, after, and on the oracles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.judging.evidence import Deletion, Evidence, of_classes, stratified_order
from gen_unlearn.metrics.denoiser_attacks import AttackConfig, Denoiser, attack_scores, epsilon_denoiser
from gen_unlearn.metrics.likelihood_ratio import likelihood_ratio_score
from gen_unlearn.metrics.membership import MembershipResult, membership_result
from gen_unlearn.metrics.protocol import MembershipConfig
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.pipelines.sampling import GeneratorPipeline
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import among, keyed_order
from gen_unlearn.runs import RunFolder

Scores = dict[str, np.ndarray]
"""Attack -> score of each image, float64 ``(n,)``."""

_NAMES = {
    "loss": "loss",
    "secmi": "SecMI",
    "pia": "PIA",
    "pian": "PIAN",
    "likelihood_ratio": "likelihood ratio",
}
_STATES = {
    "before": "the model with all its exemplars",
    "after": "the model without the deleted images among its exemplars",
    "random": "the model without as many other images, chosen at random, among its exemplars",
    "oracle": "the model that was retrained without the deleted images",
}


@dataclass(frozen=True)
class Leakage:
    """What the attacks found.

    Attributes:
        measures: area under the ROC curve and true-positive rate at 1 % false positives, by attack and state.
        roc: attack -> state -> ``fpr`` and ``tpr`` of the curve.
        notes: what could not be tested.
    """

    measures: tuple[Measure, ...] = ()
    roc: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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

    @property
    def pixels(self) -> torch.Tensor:
        """All images, float32 ``(n, c, h, w)`` in [-1, 1]."""
        return to_model_input(np.concatenate([self.data.all_images(), self.held_out.all_images()]))

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


def measure_leakage(
    run: RunFolder, oracles: Sequence[RunFolder], evidence: Evidence, config: MembershipConfig
) -> Leakage:
    """Attack the denoiser before the deletion, after it, with random images removed, and the oracles.

    The states of one model differ in their exemplars only: what an attack finds after the deletion is what
    the weights, and not the exemplars, remember. It means something beside the oracle's value alone.
    """
    deleted = evidence.deletion.images
    if not config.images or not len(run.forgotten()):
        return Leakage()
    if not len(deleted):
        return Leakage(notes=("Membership was not tested: the source no longer has the deleted images.",))
    images = ScoredImages.choose(evidence.deletion, evidence.test, config.images)
    if not len(images.held_out):
        return Leakage(notes=("Membership was not tested: no held-out image is of a deleted image's class.",))
    scores = {
        state: attack_model(pipeline, images, config, state)
        for state, pipeline in pipelines_by_state(run, deleted).items()
    }
    of_oracles = [attack_model(oracle.load_pipeline(), images, config, "oracle") for oracle in oracles]
    if of_oracles:
        scores["oracle"] = of_oracles[0]
    return _summarise(with_likelihood_ratios(scores, of_oracles), images, config, len(oracles))


def pipelines_by_state(run: RunFolder, deleted: IndexedImages) -> dict[str, GeneratorPipeline]:
    """Return the run's model with all exemplars, without the deleted ones, and without as many others.

    The last is left out if there are not as many others. Nothing on disk changes.

    Args:
        run: the run; a model without exemplars has the state ``after`` alone.
        deleted: the deleted images, or those that are still to be had.
    """
    after = run.load_pipeline()
    if not isinstance(after, SemiParametricDDPMPipeline) or after.exemplars is None:
        return {"after": after}
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
    pipeline: GeneratorPipeline, images: ScoredImages, config: MembershipConfig, state: str
) -> Scores:
    """Run the attacks that need one model, without guidance.

    Images of a class without exemplars are scored under the null token. `state` is shown before the progress
    bar.
    """
    labels = images.labels.tolist()
    schedule = pipeline.scheduler.alphas_cumprod

    def denoiser_of(rows: slice) -> Denoiser:
        if isinstance(pipeline, SemiParametricDDPMPipeline):
            predict = pipeline.noise_predictor(
                labels[rows], config.exemplars_per_class, guidance_scale=1.0, on_empty_class="null"
            )
        else:
            predict = pipeline.noise_predictor(labels[rows], guidance_scale=1.0)
        return epsilon_denoiser(predict, schedule, pipeline.scheduler.config.prediction_type)

    return attack_scores(
        images.pixels,
        images.keys,
        denoiser_of,
        schedule,
        scaled_attack(config.attack, len(schedule)),
        pipeline.unet.device,
        f"attack {state}",
    )


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


def _summarise(
    scores: dict[str, Scores], images: ScoredImages, config: MembershipConfig, oracles: int
) -> Leakage:
    measures: list[Measure] = []
    roc: dict[str, dict[str, dict[str, list[float]]]] = {}
    for attack, name in _NAMES.items():
        found = {
            state: images.result(by_attack[attack], config.attack.seed)
            for state, by_attack in scores.items()
            if attack in by_attack
        }
        if found:
            roc[name] = {
                "random removal" if state == "random" else state: {
                    "fpr": result.roc[0].tolist(),
                    "tpr": result.roc[1].tolist(),
                }
                for state, result in found.items()
            }
        for state, result in found.items():
            measures += _measures_of(attack, name, state, result)
    result = images.result(next(iter(scores.values()))["loss"], config.attack.seed)
    notes = []
    if result.outsiders < 100:
        notes.append(
            f"True-positive rates at 1 % false positives rest on {result.outsiders} held-out images only."
        )
    if oracles == 1:
        notes.append(
            "The likelihood-ratio attack had one oracle as reference, and none to judge that oracle by."
        )
    return Leakage(tuple(measures), roc, tuple(notes))


def _measures_of(attack: str, name: str, state: str, result: MembershipResult) -> list[Measure]:
    who = (
        f"{_STATES[state]}; {result.members} deleted against {result.outsiders} held-out images of the same "
        "classes"
    )
    left_out = (
        f" {result.left_out} deleted images of classes without held-out ones are left out."
        if result.left_out
        else ""
    )
    return [
        Measure.of(
            f"membership_auc_{attack}_{state}",
            result.auc,
            f"Probability that the {name} attack ranks a deleted image above a held-out one of its class "
            f"({who}).{left_out} 0.5 is no leakage; compare with the oracle's value.",
            0.5,
            "chance",
            {"interval_low": result.auc_interval[0], "interval_high": result.auc_interval[1]},
        ),
        Measure.of(
            f"membership_tpr_{attack}_{state}",
            result.tpr,
            f"Share of the deleted images that the {name} attack catches where it takes at most "
            f"{result.fpr:.0%} of the held-out images for deleted ones ({who}).{left_out}",
            result.fpr,
            "chance",
            {"interval_low": result.tpr_interval[0], "interval_high": result.tpr_interval[1]},
        ),
    ]
