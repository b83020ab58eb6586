"""Widely printed scores that sum up accuracies; for comparison with published tables, not for judging.

All are pure functions of accuracies in percent. None shows that anything was forgotten: two models with
equal accuracies may remember differently, and a mean of gaps is never 0 for two retrained models. Compute
each for a second retrained model too; that is its floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

_MEAN_ABSOLUTE_DIFFERENCE = 2 / math.sqrt(math.pi)
"""``E|a - b|`` of two independent normal values of standard deviation 1: 1.128."""


@dataclass(frozen=True, kw_only=True)
class OptmlRow:
    """Hold the four columns of the OPTML tables, in percent (Jia et al., arXiv 2304.04934).

    Attributes:
        ua: ``optml.ua``, 100 minus the accuracy on the forget set.
        ra: accuracy on the retain set.
        ta: accuracy on the test set, without forgotten classes.
        mia: ``optml.mia_efficacy.confidence``, see `gen_unlearn.metrics.mia_efficacy`.

    Raises:
        ValueError: if a value is not in [0, 100].
    """

    ua: float
    ra: float
    ta: float
    mia: float

    def __post_init__(self) -> None:
        for column in fields(self):
            _require_percent(getattr(self, column.name), column.name)


@dataclass(frozen=True, kw_only=True)
class SetAccuracies:
    """Hold the accuracies on the forget, retain and test set, in percent.

    Raises:
        ValueError: if a value is not in [0, 100].
    """

    forget: float
    retain: float
    test: float

    def __post_init__(self) -> None:
        for column in fields(self):
            _require_percent(getattr(self, column.name), column.name)


def optml_avg_gap(unlearned: OptmlRow, retrained: OptmlRow) -> float:
    """Return ``avg_gap.optml``, the mean of the four absolute differences, in percentage points.

    Lower is closer to retraining; differences between methods below 0.5 are noise. Fan et al. (SalUn, arXiv
    2310.12508).
    """
    return sum(abs(getattr(unlearned, c.name) - getattr(retrained, c.name)) for c in fields(OptmlRow)) / 4


def optml_avg_gap_floor(ua: float, ra: float, ta: float, mia: float) -> float:
    """Return the mean of ``avg_gap.optml`` between two retrained models, in percentage points.

    It is ``1.128 sigma`` averaged over the columns, for normal and independent values.

    Args:
        ua: standard deviation of UA over retrained models with independent seeds, percentage points.
        ra: that of RA.
        ta: that of TA.
        mia: that of the MIA-efficacy.

    Raises:
        ValueError: if one is negative or not finite.
    """
    spreads = (ua, ra, ta, mia)
    if not all(math.isfinite(spread) and spread >= 0 for spread in spreads):
        raise ValueError(f"expected finite standard deviations >= 0, got {spreads}; take those over seeds")
    return _MEAN_ABSOLUTE_DIFFERENCE * sum(spreads) / 4


def tow(unlearned: SetAccuracies, retrained: SetAccuracies) -> float:
    """Return ``tow``, the "tug of war" ``prod_s (1 - |a_s(U) - a_s(R)|)`` over forget, retain and test.

    In [0, 1], higher is closer to retraining. Zhao et al. (arXiv 2406.01257).
    """
    return math.prod(
        1 - abs(getattr(unlearned, c.name) - getattr(retrained, c.name)) / 100 for c in fields(SetAccuracies)
    )


def tow_mia(
    unlearned: SetAccuracies, retrained: SetAccuracies, unlearned_mia: float, retrained_mia: float
) -> float:
    """Return ``tow_mia``: `tow` with the result of an attack in place of the accuracy on the forget set.

    Args:
        unlearned: accuracies of the unlearned model; `forget` is not used.
        retrained: accuracies of the retrained model; `forget` is not used.
        unlearned_mia: result of the attack on the unlearned model, in percent.
        retrained_mia: result of the same attack on the retrained model, in percent.

    Raises:
        ValueError: if a result is not in [0, 100].
    """
    return tow(
        SetAccuracies(forget=unlearned_mia, retain=unlearned.retain, test=unlearned.test),
        SetAccuracies(forget=retrained_mia, retain=retrained.retain, test=retrained.test),
    )


def aus(original_test: float, test: float, forget: float, setting: Literal["random", "class"]) -> float:
    """Return ``aus``, the adaptive unlearning score ``(1 - (A_or - A_t)) / (1 + Delta)`` of shares.

    ``Delta = |A_t - A_f|`` for a random forget set, and ``|0 - A_f|`` for a forgotten class, of which nothing
    may be left. Higher is better; it exceeds 1 if unlearning raises the test accuracy. It needs no retrained
    model, and a retrained one does not reach 1. Cotogni et al. (DUCK, arXiv 2312.02052).

    Args:
        original_test: test accuracy of the original model, in percent; without the forgotten class.
        test: test accuracy of the unlearned model, in percent; without the forgotten class.
        forget: accuracy of the unlearned model on the forget set, in percent.
        setting: kind of forget set.

    Raises:
        ValueError: if an accuracy is not in [0, 100], or the setting is unknown.
    """
    _require_percent(original_test, "original_test")
    _require_percent(test, "test")
    _require_percent(forget, "forget")
    match setting:
        case "random":
            distance = abs(test - forget)
        case "class":
            distance = forget
        case _:
            raise ValueError(f"expected a setting 'random' or 'class', got {setting!r}; name one of them")
    return (1 - (original_test - test) / 100) / (1 + distance / 100)


def nomus(test: float, attack_accuracy: float, weight: float = 0.5) -> float:
    """Return ``nomus``, ``w A_t + (1 - w) (1 - 2 |UMIA - 1/2|)`` of shares, in [0, 1].

    Higher is better by its authors; it rewards an attack at chance, whatever the retrained model has. Choi &
    Na (arXiv 2311.02240).

    Args:
        test: test accuracy, in percent.
        attack_accuracy: UMIA, the accuracy of a balanced attack that tells forget from held-out images, in
            percent; 50 is chance.
        weight: share `w` of the test accuracy, in [0, 1].

    Raises:
        ValueError: if an accuracy is not in [0, 100], or the weight not in [0, 1].
    """
    _require_percent(test, "test")
    _require_percent(attack_accuracy, "attack_accuracy")
    if not 0 <= weight <= 1:
        raise ValueError(f"expected a weight in [0, 1], got {weight}; the authors use 0.5")
    return weight * test / 100 + (1 - weight) * (1 - 2 * abs(attack_accuracy / 100 - 0.5))


def _require_percent(value: float, name: str) -> None:
    if not 0 <= value <= 100:
        raise ValueError(f"expected {name} in [0, 100] percent, got {value}; multiply shares by 100")
