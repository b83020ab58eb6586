"""What is measured of one unlearned model, beside the original and the retrained model of its seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from gen_unlearn.benchmark.predictions import Logits, MeasuredSets, SetName
from gen_unlearn.benchmark.recipe import MeasureConfig
from gen_unlearn.metrics.classifier_accuracy import accuracy
from gen_unlearn.metrics.compatibility import (
    OptmlRow,
    SetAccuracies,
    aus,
    nomus,
    optml_avg_gap,
    tow,
    tow_mia,
)
from gen_unlearn.metrics.margins import score
from gen_unlearn.metrics.mia_efficacy import mia_efficacy
from gen_unlearn.metrics.output_distances import output_distances, probabilities, zrf
from gen_unlearn.metrics.population_attack import population_mia
from gen_unlearn.metrics.rmia import rmia_result

LEAST_REFERENCES = 4
"""Retrained models of other seeds that the attack with references needs."""

Metrics = dict[str, float]
"""Id -> value, see `gen_unlearn.benchmark.catalogue`; rates and accuracies in percent, areas as shares."""

_COMPARED: tuple[SetName, ...] = ("forget", "test", "forget_class_test")
_EFFICACY = "optml.mia_efficacy.confidence"


@dataclass(frozen=True, eq=False)
class Context:
    """What a model of one training seed is measured against.

    Attributes:
        sets: the images.
        original: logits of the original of the seed.
        retrained: logits of the retrained model of the seed.
        references: logits of retrained models of other seeds.
        untrained: logits of a model with fresh weights.
        config: which attacks.
    """

    sets: MeasuredSets
    original: Logits
    retrained: Logits
    references: Sequence[Logits]
    untrained: Logits
    config: MeasureConfig

    @cached_property
    def retrained_levels(self) -> Metrics:
        """What the metrics of the retrained model are, which are those to reach."""
        return _levels(self.retrained, self)


def measure(own: Logits, context: Context) -> Metrics:
    """Return the metrics of a model that are taken from its logits and those of its context."""
    levels, target = _levels(own, context), context.retrained_levels
    gaps = {
        f"gap.{name}": abs(value - target[name])
        for name, value in levels.items()
        if name.startswith("acc.") and name in target
    }
    found = levels | gaps
    for name in _COMPARED:
        if name in own:
            compared = output_distances(own[name], context.retrained[name]).named(name)
            found |= {key: value.value for key, value in compared.items()}
    if "acc.test" in levels:
        found |= _compatibility(levels, context)
    return found


def _levels(own: Logits, context: Context) -> Metrics:
    """Return what has the retrained model's value as its target."""
    sets = context.sets
    found = {f"acc.{name}": accuracy(values, sets.labels(name)).value for name, values in own.items()}
    found["optml.ua"] = 100 - found["acc.forget"]
    found["zrf"] = zrf(own["forget"], context.untrained["forget"]).value
    found |= _population_attacks(own, context)
    if len(context.references) >= LEAST_REFERENCES:
        found["rmia.ratio.auc"] = _ratio_attack(own, context)
    if "test" in own:
        found[_EFFICACY] = mia_efficacy(
            _confidence(own, sets, "retain"),
            _confidence(own, sets, "test"),
            _confidence(own, sets, "forget"),
            retain_ids=sets.images["retain"].ids,
        ).percent.value
    return found


def _population_attacks(own: Logits, context: Context) -> Metrics:
    forget, heldout, found = context.sets.images["forget"], context.sets.images["heldout"], {}
    for name in context.config.scores:
        attack = population_mia(
            score(name, own["forget"], forget.labels),
            forget.labels,
            score(name, own["heldout"], heldout.labels),
            heldout.labels,
            forget_ids=forget.ids,
            heldout_ids=heldout.ids,
        )
        for key, value in attack.named(name).items():
            if value is not None:
                found[key] = value.value * (1 if key.endswith(".auc") else 100)
    return found


def _ratio_attack(own: Logits, context: Context) -> float:
    sets = context.sets
    sides: tuple[SetName, ...] = ("forget", "heldout")
    forget, heldout = (
        (
            _confidence(own, sets, name),
            np.stack([_confidence(other, sets, name) for other in context.references]),
            sets.labels(name),
        )
        for name in sides
    )
    return rmia_result(*forget, *heldout).auc.value


def _compatibility(levels: Metrics, context: Context) -> Metrics:
    """Return the widely printed sums of gaps."""
    both = (levels, context.retrained_levels)
    rows = [
        OptmlRow(ua=of["optml.ua"], ra=of["acc.retain"], ta=of["acc.test"], mia=of[_EFFICACY]) for of in both
    ]
    accuracies = [
        SetAccuracies(forget=of["acc.forget"], retain=of["acc.retain"], test=of["acc.test"]) for of in both
    ]
    setting: Literal["random", "class"] = "class" if context.sets.forgotten_classes else "random"
    original_test = accuracy(context.original["test"], context.sets.labels("test")).value
    found = {
        "avg_gap.optml": optml_avg_gap(rows[0], rows[1]),
        "tow": tow(accuracies[0], accuracies[1]),
        "tow_mia": tow_mia(
            accuracies[0], accuracies[1], levels[_EFFICACY], context.retrained_levels[_EFFICACY]
        ),
        "aus": aus(original_test, levels["acc.test"], levels["acc.forget"], setting),
    }
    balanced = [value for name, value in levels.items() if name.endswith(".balanced_acc")]
    if balanced:
        found["nomus"] = nomus(levels["acc.test"], balanced[0])
    return found


def _confidence(logits: Logits, sets: MeasuredSets, name: SetName) -> np.ndarray:
    """Return the probability of the label of each image of a set, float64 ``(n,)``."""
    labels = sets.labels(name)
    return probabilities(logits[name])[np.arange(len(labels)), labels]
