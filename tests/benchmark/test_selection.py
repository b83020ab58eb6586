from __future__ import annotations

import pytest

from gen_unlearn.benchmark.selection import Accuracies, Trial, mean_gap, select_change, select_trial

RETRAINED = Accuracies(forget=85.0, retain=97.0, heldout=90.0)
NOTHING = Trial(None, Accuracies(98.0, 97.2, 90.1))


def trial(forget: float, retain: float, heldout: float) -> Trial:
    return Trial({"lr": forget}, Accuracies(forget, retain, heldout))


def test_takes_the_nearest_forget_accuracy_within_the_tolerance() -> None:
    trials = [NOTHING, trial(85.0, 94.9, 90.0), trial(84.0, 95.0, 92.0), trial(87.0, 97.0, 90.0)]
    chosen = select_trial(trials, RETRAINED, "forget_within_tolerance")
    assert (chosen.index, chosen.score, chosen.infeasible) == (2, 1.0, False)
    assert select_trial(trials, RETRAINED, "forget_within_tolerance", tolerance=2.2).index == 1


def test_an_accuracy_above_retraining_violates_the_tolerance_too() -> None:
    trials = [NOTHING, trial(85.0, 99.5, 90.0)]
    assert select_trial(trials, RETRAINED, "forget_within_tolerance").index == 0


def test_without_a_feasible_trial_takes_the_least_violation_and_says_so() -> None:
    far = Trial(None, Accuracies(98.0, 80.0, 90.0))
    trials = [far, trial(85.0, 93.0, 85.0), trial(60.0, 93.5, 86.0), trial(86.0, 97.0, 86.0)]
    chosen = select_trial(trials, RETRAINED, "forget_within_tolerance")
    assert (chosen.index, chosen.infeasible) == (3, True)


def test_doing_nothing_can_win() -> None:
    trials = [trial(10.0, 97.0, 90.0), NOTHING]
    for rule in ("forget_within_tolerance", "mean_gap"):
        assert select_trial(trials, RETRAINED, rule).trial is NOTHING
    with pytest.raises(ValueError, match='expected "do nothing"'):
        select_trial(trials[:1], RETRAINED, "mean_gap")


def test_mean_gap_weighs_the_three_alike() -> None:
    assert mean_gap(NOTHING.levels, RETRAINED) == pytest.approx((13.0 + 0.2 + 0.1) / 3)
    trials = [NOTHING, trial(83.0, 96.0, 90.0), trial(85.0, 93.0, 91.5)]
    chosen = select_trial(trials, RETRAINED, "mean_gap")
    assert (chosen.index, chosen.infeasible) == (1, False)
    assert chosen.score == pytest.approx(1.0)


def test_ties_go_to_the_first_trial_even_through_rounding() -> None:
    trials = [NOTHING, trial(84.9, 97.0, 90.0), trial(85.1, 97.0, 90.0)]
    for rule in ("forget_within_tolerance", "mean_gap"):
        assert select_trial(trials, RETRAINED, rule).index == 1
        assert select_trial([trials[2], trials[1], NOTHING], RETRAINED, rule).index == 0


def test_failed_trials_are_passed_over() -> None:
    trials = [Trial({}, None), NOTHING, trial(85.0, 97.0, 90.0)]
    assert select_trial(trials, RETRAINED, "mean_gap").index == 2


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="0 to 100, got retain = nan"):
        Accuracies(1.0, float("nan"), 1.0)
    with pytest.raises(ValueError, match="got 'best'"):
        select_trial([NOTHING], RETRAINED, "best")


def test_the_best_change_is_taken_where_doing_nothing_wins() -> None:
    trials = [trial(10.0, 97.0, 90.0), NOTHING, trial(60.0, 96.0, 90.0), Trial({}, None)]
    for rule in ("forget_within_tolerance", "mean_gap"):
        assert select_trial(trials, RETRAINED, rule).index == 1
        assert select_change(trials, RETRAINED, rule).index == 2
    with pytest.raises(ValueError, match="got 1 that failed"):
        select_change([NOTHING, Trial({}, None)], RETRAINED, "mean_gap")
