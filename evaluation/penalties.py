"""Choose settings with public images alone, before anything is fit on a deletable one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from evaluation.adapter_systems import Setting
from gen_unlearn.adapters.records import Records
from gen_unlearn.repro import keyed_order

FOLDS = 5


class Choice(NamedTuple):
    """What was chosen: a setting, its penalty, and the accuracy of each candidate by cross-validation."""

    setting: Any
    penalty: float
    accuracies: list[float]


def choose(candidates: Sequence[tuple[Setting, float]], tuning: Records, deletable: int) -> Choice:
    """Choose the setting and penalty that classify held-out public images best; of equal ones the first.

    A candidate is fit with fewer adapters or shards, so that each has about as many records as it will have.

    Args:
        candidates: settings with penalties.
        tuning: public images that the encoder was not trained on.
        deletable: how many images will be fit.
    """
    fold = np.empty(len(tuning), dtype=int)
    fold[keyed_order(tuning.ids, 0, "folds")] = np.arange(len(tuning)) % FOLDS
    accuracies = [_accuracy(setting, penalty, tuning, fold, deletable) for setting, penalty in candidates]
    best = int(np.argmax(accuracies))
    return Choice(*candidates[best], accuracies)


def _accuracy(setting: Setting, penalty: float, tuning: Records, fold: np.ndarray, deletable: int) -> float:
    right = 0
    for held_out in range(FOLDS):
        fitted, judged = tuning.select(fold != held_out), tuning.select(fold == held_out)
        system = setting.matched(len(fitted) / deletable).build(fitted, penalty, held_out)
        right += int((system.scores(judged.codes).argmax(axis=1) == judged.labels).sum())
    return right / len(tuning)
