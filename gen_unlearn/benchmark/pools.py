"""What is measured of a pool of unlearned models, one for each training seed, beside the retrained ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gen_unlearn.benchmark.predictions import Logits, MeasuredSets, SetName
from gen_unlearn.benchmark.summary import Cell
from gen_unlearn.metrics.classifier_accuracy import accuracy
from gen_unlearn.metrics.epsilon_score import epsilon_score
from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.klom import klom_gauss, klom_hist20
from gen_unlearn.metrics.margins import margins
from gen_unlearn.metrics.output_distances import probabilities
from gen_unlearn.metrics.prediction_gap import Distance, compare_with_retrained
from gen_unlearn.metrics.ulira import LEAST_MODELS, ulira_loo

LEAST_FOR_HISTOGRAMS = 100
"""Models in each pool from which margins are compared by histograms, and below by fitted normals."""

_NORMAL = 1.959964
_MARGINS: tuple[SetName, ...] = ("forget", "retain", "heldout")
_ENERGY: dict[str, Distance] = {"01": "disagreement", "js": "js"}


def measure_pool(
    models: Sequence[Logits], retrained: Sequence[Logits], sets: MeasuredSets
) -> dict[str, Estimate]:
    """Compare two pools of models of the same images; with fewer than three in one there is nothing to say.

    Args:
        models: logits of the unlearned models, by training seed.
        retrained: logits of the retrained ones.
        sets: the images.

    Returns:
        Id -> value with the standard error of other images; for ``ulira.loo.auc`` of other models too.
    """
    if min(len(models), len(retrained)) < LEAST_MODELS:
        return {}
    found: dict[str, Estimate] = {}
    pools = {name: (_margins(models, sets, name), _margins(retrained, sets, name)) for name in _MARGINS}
    attack = ulira_loo(pools["forget"][0], pools["forget"][1])
    spread = math.hypot(attack.auc.standard_error, attack.model_error or 0.0)
    found["ulira.loo.auc"] = Estimate(attack.auc.value, spread)
    for key, rate in (("tpr@1%", attack.tpr_1), ("tpr@.1%", attack.tpr_01)):
        if rate is not None:
            found[f"ulira.loo.{key}"] = rate.scaled(100.0)
    many = min(len(models), len(retrained)) >= LEAST_FOR_HISTOGRAMS
    for name, (own, others) in pools.items():
        divergence = (klom_hist20 if many else klom_gauss)(own, others)
        form = "hist20" if many else "gauss"
        found |= {
            f"klom.{form}.mean.{name}": divergence.mean,
            f"klom.{form}.p95.{name}": divergence.p95,
        }
    for kind, distance in _ENERGY.items():
        for name in ("forget", "test", "forget_class_test"):
            if name in models[0]:
                gap = compare_with_retrained(
                    [probabilities(one[name]) for one in models],
                    [probabilities(one[name]) for one in retrained],
                    distance,
                )
                assert gap.energy is not None
                found[f"energy_pg.{kind}.{name}"] = gap.energy
    if "test" in models[0]:
        retain, test = (_ratio(models, retrained, sets, name) for name in ("retain", "test"))
        count = min(len(models), len(retrained))
        score = epsilon_score(pools["forget"][0], pools["forget"][1], retain, test)
        found[f"eps_score.single.n{count}"] = score.score
    return found


def pool_cell(value: Estimate, floor: Estimate | None, models: int) -> Cell:
    """Return a pool's metric as a cell: one value for all seeds, with the interval of other images."""
    slack = None
    if floor is not None:
        slack = _NORMAL * float(np.hypot(value.standard_error, floor.standard_error))
    return Cell(
        value.value,
        _NORMAL * value.standard_error,
        None if floor is None else floor.value,
        (value.value,),
        (0,),
        excess_half_width=slack,
        note="of the whole pool; the interval is that of other images",
        models=models,
    )


def _margins(pool: Sequence[Logits], sets: MeasuredSets, name: SetName) -> np.ndarray:
    """Return the margins of a set under each model, float64 ``(models, n)``."""
    return np.stack([margins(one[name], sets.labels(name)) for one in pool])


def _ratio(models: Sequence[Logits], retrained: Sequence[Logits], sets: MeasuredSets, name: SetName) -> float:
    """Return the mean accuracy of a pool on a set over that of the retrained models."""
    own, other = (
        float(np.mean([accuracy(one[name], sets.labels(name)).value for one in pool]))
        for pool in (models, retrained)
    )
    return own / other
