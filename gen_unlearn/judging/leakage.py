"""Whether the denoiser remembers the deleted images: membership attacks before, after, and on the oracles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gen_unlearn.judging.attacks import (
    ScoredImages,
    Scores,
    attack_model,
    pipelines_by_state,
    with_likelihood_ratios,
)
from gen_unlearn.judging.evidence import Evidence
from gen_unlearn.judging.refitting import RefittableEnsemble
from gen_unlearn.judging.wording import Wording
from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.membership import MembershipResult
from gen_unlearn.metrics.protocol import MembershipConfig
from gen_unlearn.metrics.scorecard import Measure
from gen_unlearn.runs import RunFolder

_FEWEST_PER_CLASS = 20
"""Held-out images of a class below which true-positive rates are too high, see `membership_result`."""

_NAMES = {
    "loss": "loss",
    "secmi": "SecMI",
    "pia": "PIA",
    "pian": "PIAN",
    "clid": "CLiD",
    "likelihood_ratio": "likelihood ratio",
}


@dataclass(frozen=True)
class Leakage:
    """What the attacks found.

    Attributes:
        measures: area under the ROC curve, true-positive rate at 1 % false positives, and difference of the
            area to the oracle's, by attack and state.
        roc: attack -> state -> ``fpr`` and ``tpr`` of the curve.
        notes: what could not be tested.
    """

    measures: tuple[Measure, ...] = ()
    roc: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def measure_leakage(
    run: RunFolder,
    oracles: Sequence[RunFolder],
    evidence: Evidence,
    config: MembershipConfig,
    ensemble: RefittableEnsemble | None = None,
) -> Leakage:
    """Attack the denoiser before the deletion, after it, with random images removed, and the oracles.

    The states of one model differ in their exemplars, or in the adapters of the images, only: what an attack
    finds after the deletion is what the weights, and not the exemplars, remember. It means something beside
    the oracle's value alone. `ensemble` is the run, if it is an adapter ensemble.
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
        for state, pipeline in pipelines_by_state(run, deleted, ensemble).items()
    }
    of_oracles = [attack_model(oracle.load_pipeline(), images, config, "oracle") for oracle in oracles]
    if of_oracles:
        scores["oracle"] = of_oracles[0]
    complete = with_likelihood_ratios(scores, of_oracles)
    return _summarise(complete, images, config, len(oracles), evidence.words)


def _summarise(
    scores: dict[str, Scores],
    images: ScoredImages,
    config: MembershipConfig,
    oracles: int,
    words: Wording,
) -> Leakage:
    measures: list[Measure] = []
    roc: dict[str, dict[str, dict[str, list[float]]]] = {}
    outsiders = 0
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
            outsiders = result.outsiders
            measures += _measures_of(attack, name, state, result, words)
            if "oracle" in found and state != "oracle":
                gap = images.difference(scores[state][attack], scores["oracle"][attack])
                measures.append(_gap(attack, name, state, gap, words))
    notes = []
    if outsiders < 100:
        notes.append(f"True-positive rates at 1 % false positives rest on {outsiders} held-out images only.")
    if np.unique(images.held_out.labels, return_counts=True)[1].min() < _FEWEST_PER_CLASS:
        notes.append(
            f"Some deleted classes have fewer than {_FEWEST_PER_CLASS} held-out images: true-positive rates "
            "are too high for them; read the areas under the curves."
        )
    if oracles == 1:
        notes.append(
            "The likelihood-ratio attack had one oracle as reference, and none to judge that oracle by."
        )
    return Leakage(tuple(measures), roc, tuple(notes))


def _measures_of(
    attack: str, name: str, state: str, result: MembershipResult, words: Wording
) -> list[Measure]:
    who = (
        f"{words.states[state]}; {result.members} deleted against {result.outsiders} held-out images of the "
        "same classes"
    )
    left_out = (
        f" {result.left_out} deleted images of classes without held-out ones are left out."
        if result.left_out
        else ""
    )
    left_out += f" {words.scored}" if words.scored else ""
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


def _gap(attack: str, name: str, state: str, gap: Estimate, words: Wording) -> Measure:
    return Measure.of(
        f"membership_gap_{attack}_{state}",
        gap,
        f"membership_auc_{attack} of {words.states[state]}, minus that of {words.states['oracle']}: the "
        f"{name} attack on the same images, with the error of the paired difference. {words.gap_of(state)}",
        0.0,
        "the oracle",
    )
