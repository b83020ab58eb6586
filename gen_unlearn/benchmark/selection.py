"""Which trial of a hyper-parameter search is taken: rules fixed beforehand, on levels of pilot seeds."""

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

_ROUNDING = 9  # decimals to which differences of levels are compared


@dataclass(frozen=True)
class Levels:
    """How well a model does on forgotten, retained and held-out images, means over the pilot seeds.

    There is nothing of test images: a selection must not see it, nor any privacy metric that is reported.

    Attributes:
        forget: on a scale of which a unit counts alike everywhere, such as points of accuracy.
        retain: the same on retained images.
        heldout: the same on held-out images.

    Raises:
        ValueError: one is not finite.
    """

    forget: float
    retain: float
    heldout: float

    def __post_init__(self) -> None:
        for name, value in (("forget", self.forget), ("retain", self.retain), ("heldout", self.heldout)):
            if not math.isfinite(value):
                raise ValueError(f"expected a finite level, got {name} = {value}")


class Accuracies(Levels):
    """Accuracies in per cent.

    Raises:
        ValueError: one is not between 0 and 100.
    """

    def __post_init__(self) -> None:
        for name, value in (("forget", self.forget), ("retain", self.retain), ("heldout", self.heldout)):
            if not 0 <= value <= 100:  # NaN as well
                raise ValueError(f"expected an accuracy in per cent, 0 to 100, got {name} = {value}")


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes:
        settings: what was set; empty for the defaults, `None` for "do nothing": the original model.
        levels: what came of it; `None` if the trial failed.
    """

    settings: Mapping[str, Setting] | None
    levels: Levels | None


@dataclass(frozen=True)
class Selection:
    """The trial that a rule selects.

    Attributes:
        index: its place among the trials.
        trial: the trial.
        score: what the rule minimises, in the unit of the levels.
        infeasible: no trial came within the tolerance; this one violates it least.
    """

    index: int
    trial: Trial
    score: float
    infeasible: bool


def select_trial(
    trials: Sequence[Trial], retrained: Levels, rule: Rule, tolerance: float = TOLERANCE
) -> Selection:
    """Select a trial; the first one where several are as good.

    ``"forget_within_tolerance"`` takes, among the trials whose retain and held-out levels are both within
    `tolerance` of the retrained model's, the one with the least ``|forget - forget(R)|``. If
    there is none, it takes the one whose larger excess over the tolerance is least, flagged infeasible.
    ``"mean_gap"`` takes the least ``(|dRA| + |dFA| + |dVA|) / 3``, 1-indiscernibility.

    Raises:
        ValueError: "do nothing" is not among the trials, or it has no levels.
    """
    if not any(trial.settings is None and trial.levels is not None for trial in trials):
        raise ValueError(
            f'expected "do nothing" among the trials, got {len(trials)} without it; add the original '
            "model as a trial with settings None"
        )
    return _best(list(enumerate(trials)), retrained, rule, tolerance)


def select_change(
    trials: Sequence[Trial], retrained: Levels, rule: Rule, tolerance: float = TOLERANCE
) -> Selection:
    """Select a trial as `select_trial` does, but never "do nothing", which is no result of a method.

    Raises:
        ValueError: every trial that changes the model failed.
    """
    changed = [(index, trial) for index, trial in enumerate(trials) if trial.settings is not None]
    if all(trial.levels is None for _, trial in changed):
        raise ValueError(
            f"expected a trial that ran, got {len(changed)} that failed; narrow the search space"
        )
    return _best(changed, retrained, rule, tolerance)


def mean_gap(levels: Levels, retrained: Levels) -> float:
    """Return ``(|dRA| + |dFA| + |dVA|) / 3`` in the unit of the levels."""
    return math.fsum(_gaps(levels, retrained)) / 3


def _best(trials: Sequence[tuple[int, Trial]], retrained: Levels, rule: Rule, tolerance: float) -> Selection:
    """Return the best of the trials that ran, each with its place."""
    scored = [
        (index, trial, _score(trial.levels, retrained, rule, tolerance))
        for index, trial in trials
        if trial.levels is not None
    ]
    index, trial, (violation, score) = min(scored, key=lambda each: (each[2], each[0]))
    return Selection(index, trial, score, infeasible=violation > 0)


def _gaps(levels: Levels, retrained: Levels) -> tuple[float, float, float]:
    """Return the absolute differences on forgotten, retained and held-out images."""
    return (
        abs(levels.forget - retrained.forget),
        abs(levels.retain - retrained.retain),
        abs(levels.heldout - retrained.heldout),
    )


def _score(levels: Levels, retrained: Levels, rule: Rule, tolerance: float) -> tuple[float, float]:
    """Return by how much a trial violates the tolerance, and what the rule minimises."""
    forget, retain, heldout = _gaps(levels, retrained)
    if rule == "mean_gap":
        return 0.0, round(mean_gap(levels, retrained), _ROUNDING)
    if rule == "forget_within_tolerance":
        return round(max(retain - tolerance, heldout - tolerance, 0.0), _ROUNDING), round(forget, _ROUNDING)
    raise ValueError(f"expected forget_within_tolerance or mean_gap as the rule, got {rule!r}")
