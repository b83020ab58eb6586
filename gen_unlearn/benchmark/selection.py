"""Which trial of a hyper-parameter search is taken: rules fixed beforehand, on accuracies of pilot seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gen_unlearn.methods.search_space import Setting

Rule: TypeAlias = Literal["forget_within_tolerance", "mean_gap"]
"""How a trial is selected; see `select_trial`."""

TOLERANCE = 2.0
"""Points of accuracy by which a feasible trial may differ from retraining on retained and held-out images."""

_ROUNDING = 9  # decimals to which differences of accuracies are compared


@dataclass(frozen=True)
class Accuracies:
    """Accuracies in per cent, means over the pilot seeds, on forgotten, retained and held-out images.

    There is no test accuracy: a selection must not see it, nor any privacy metric that is reported.

    Raises:
        ValueError: one is not between 0 and 100.
    """

    forget: float
    retain: float
    heldout: float

    def __post_init__(self) -> None:
        for name, value in (("forget", self.forget), ("retain", self.retain), ("heldout", self.heldout)):
            if not 0 <= value <= 100:  # NaN as well
                raise ValueError(f"expected an accuracy in per cent, 0 to 100, got {name} = {value}")


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes:
        settings: what was set; empty for the defaults, `None` for "do nothing": the original model.
        accuracies: what came of it; `None` if the trial failed.
    """

    settings: Mapping[str, Setting] | None
    accuracies: Accuracies | None


@dataclass(frozen=True)
class Selection:
    """The trial that a rule selects.

    Attributes:
        index: its place among the trials.
        trial: the trial.
        score: what the rule minimises, in points of accuracy.
        infeasible: no trial came within the tolerance; this one violates it least.
    """

    index: int
    trial: Trial
    score: float
    infeasible: bool


def select_trial(
    trials: Sequence[Trial], retrained: Accuracies, rule: Rule, tolerance: float = TOLERANCE
) -> Selection:
    """Select a trial; the first one where several are as good.

    ``"forget_within_tolerance"`` takes, among the trials whose retain and held-out accuracies are both within
    `tolerance` points of the retrained model's, the one with the least ``|acc_forget - acc_forget(R)|``. If
    there is none, it takes the one whose larger excess over the tolerance is least, flagged infeasible.
    ``"mean_gap"`` takes the least ``(|dRA| + |dFA| + |dVA|) / 3``, 1-indiscernibility.

    Raises:
        ValueError: "do nothing" is not among the trials, or it has no accuracies.
    """
    if not any(trial.settings is None and trial.accuracies is not None for trial in trials):
        raise ValueError(
            f'expected "do nothing" among the trials, got {len(trials)} without it; add the original '
            "model as a trial with settings None"
        )
    return _best(list(enumerate(trials)), retrained, rule, tolerance)


def select_change(
    trials: Sequence[Trial], retrained: Accuracies, rule: Rule, tolerance: float = TOLERANCE
) -> Selection:
    """Select a trial as `select_trial` does, but never "do nothing", which is no result of a method.

    Raises:
        ValueError: every trial that changes the model failed.
    """
    changed = [(index, trial) for index, trial in enumerate(trials) if trial.settings is not None]
    if all(trial.accuracies is None for _, trial in changed):
        raise ValueError(
            f"expected a trial that ran, got {len(changed)} that failed; narrow the search space"
        )
    return _best(changed, retrained, rule, tolerance)


def mean_gap(accuracies: Accuracies, retrained: Accuracies) -> float:
    """Return ``(|dRA| + |dFA| + |dVA|) / 3`` in points of accuracy."""
    return math.fsum(_gaps(accuracies, retrained)) / 3


def _best(
    trials: Sequence[tuple[int, Trial]], retrained: Accuracies, rule: Rule, tolerance: float
) -> Selection:
    """Return the best of the trials that ran, each with its place."""
    scored = [
        (index, trial, _score(trial.accuracies, retrained, rule, tolerance))
        for index, trial in trials
        if trial.accuracies is not None
    ]
    index, trial, (violation, score) = min(scored, key=lambda each: (each[2], each[0]))
    return Selection(index, trial, score, infeasible=violation > 0)


def _gaps(accuracies: Accuracies, retrained: Accuracies) -> tuple[float, float, float]:
    """Return the absolute differences on forgotten, retained and held-out images."""
    return (
        abs(accuracies.forget - retrained.forget),
        abs(accuracies.retain - retrained.retain),
        abs(accuracies.heldout - retrained.heldout),
    )


def _score(
    accuracies: Accuracies, retrained: Accuracies, rule: Rule, tolerance: float
) -> tuple[float, float]:
    """Return by how much a trial violates the tolerance, and what the rule minimises."""
    forget, retain, heldout = _gaps(accuracies, retrained)
    if rule == "mean_gap":
        return 0.0, round(mean_gap(accuracies, retrained), _ROUNDING)
    if rule == "forget_within_tolerance":
        return round(max(retain - tolerance, heldout - tolerance, 0.0), _ROUNDING), round(forget, _ROUNDING)
    raise ValueError(f"expected forget_within_tolerance or mean_gap as the rule, got {rule!r}")
