"""What is measured of a pool of unlearned models, one for each training seed, beside the retrained ones.

A pool has one value for all seeds. Its interval is that of other images and of other models, the latter by
the jackknife over training seeds: models that are surer than others are so of many images at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from gen_unlearn.benchmark.predictions import Logits, MeasuredSets, SetName
from gen_unlearn.benchmark.summary import Cell
from gen_unlearn.metrics.classifier_accuracy import accuracy
from gen_unlearn.metrics.epsilon_score import epsilon_score, epsilons, qualities
from gen_unlearn.metrics.estimate import Estimate
from gen_unlearn.metrics.klom import klom_gauss, klom_hist20, model_errors
from gen_unlearn.metrics.margins import margins
from gen_unlearn.metrics.output_distances import probabilities
from gen_unlearn.metrics.prediction_gap import Distance, compare_with_retrained
from gen_unlearn.metrics.ulira import ulira_loo

LEAST_FOR_POOLS = 5
"""Models in each pool below which nothing is measured: so few do not show how a value varies with them."""

LEAST_FOR_HISTOGRAMS = 100
"""Models in each pool from which margins are compared by histograms, and below by fitted normals."""

_NORMAL = 1.959964
_MARGINS: tuple[SetName, ...] = ("forget", "retain", "heldout")
_ENERGY: dict[str, Distance] = {"01": "disagreement", "js": "js"}


def measure_pool(
    models: Sequence[Logits], retrained: Sequence[Logits], sets: MeasuredSets
) -> dict[str, Estimate]:
    """Compare two pools of models of the same images; with fewer than five in one there is nothing to say.

    Args:
        models: logits of the unlearned models, by training seed.
        retrained: logits of the retrained ones.
        sets: the images.

    Returns:
        Id -> value with the standard error of other images and other models; for ``ulira.loo.tpr`` of other
        images alone.
    """
    if min(len(models), len(retrained)) < LEAST_FOR_POOLS:
        return {}
    pools = {name: (_margins(models, sets, name), _margins(retrained, sets, name)) for name in _MARGINS}
    found = _attacked(*pools["forget"])
    for name, (own, others) in pools.items():
        found |= _divergence(own, others, name)
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
        found[f"eps_score.single.n{count}"] = _epsilon_score(*pools["forget"], retain * test)
    return found


def _attacked(own: np.ndarray, others: np.ndarray) -> dict[str, Estimate]:
    """Return the metrics of U-LiRA."""
    attack = ulira_loo(own, others)
    found = {"ulira.loo.auc": _widened(attack.auc, attack.model_error or 0.0)}
    for key, rate in (("tpr@1%", attack.tpr_1), ("tpr@.1%", attack.tpr_01)):
        if rate is not None:
            found[f"ulira.loo.{key}"] = rate.scaled(100.0)
    return found


def _divergence(own: np.ndarray, others: np.ndarray, name: SetName) -> dict[str, Estimate]:
    """Return the metrics of KLoM on a set."""
    many = min(len(own), len(others)) >= LEAST_FOR_HISTOGRAMS
    form: Literal["hist20", "gauss"] = "hist20" if many else "gauss"
    divergence = (klom_hist20 if many else klom_gauss)(own, others)
    errors = model_errors(own, others, form)
    return {
        f"klom.{form}.mean.{name}": _widened(divergence.mean, errors[0]),
        f"klom.{form}.p95.{name}": _widened(divergence.p95, errors[1]),
    }


def _epsilon_score(own: np.ndarray, others: np.ndarray, ratio: float) -> Estimate:
    """Return the score of the challenge; `ratio` is that of the accuracies, which vary far less."""
    count = min(len(own), len(others))
    kept = ([pool[np.arange(len(pool)) % count != index] for pool in (own, others)] for index in range(count))
    left = [float(qualities(epsilons(*pair)).mean()) for pair in kept]
    score = epsilon_score(own, others, ratio, 1.0).score
    return _widened(score, ratio * float(np.std(left)) * math.sqrt(count - 1))


def _widened(value: Estimate, model_error: float) -> Estimate:
    return Estimate(value.value, math.hypot(value.standard_error, model_error))


def pool_cell(value: Estimate, floor: Estimate | None, models: int) -> Cell:
    """Return a pool's metric as a cell: one value for all seeds, beside that of the second retrained pool."""
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
        note="of the whole pool, as is its interval",
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
