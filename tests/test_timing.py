"""Tests of the rows of the performance table."""

from __future__ import annotations

import os
from dataclasses import asdict
from threading import Thread

import pytest

from evaluation.timing import Row, in_turns, one_core


def test_a_row_of_repeats_is_their_median_with_a_robust_spread() -> None:
    row = Row.of("reading", "writing", [3.0, 1.0, 2.0, 2.5, 100.0], " s")
    assert (row.value, row.spread) == (2.5, pytest.approx(1.4826 * 0.5))
    assert row.verdict == ""
    assert row.met is None


def test_a_row_of_a_ratio_puts_what_is_measured_over_what_it_is_compared_with() -> None:
    assert Row.of_ratio("reading", "writing", [(1.0, 2.0), (3.0, 4.0), (2.0, 2.0)]).value == 0.75


@pytest.mark.parametrize(
    ("value", "better", "met"), [(1, "lower", True), (3, "lower", False), (3, "higher", True)]
)
def test_a_target_has_a_side(value: float, better: str, met: bool) -> None:
    assert Row("w", "c", value, 0, " x", 2, better).met is met


def test_a_missed_target_is_said_with_its_reason() -> None:
    row = Row("w", "c", 3.0, 0.1, " x", 2.0, "lower", "half of it is convolution")
    assert row.verdict == "≤ 2 x, **missed**: half of it is convolution"
    assert "missed" in str(row)
    near = Row(**asdict(row) | {"spread": 1.1})
    assert near.verdict == "≤ 2 x, **missed** by less than its spread: half of it is convolution"
    assert "missed" not in str(Row(**asdict(row) | {"target": 4.0}))


def test_work_and_its_reference_take_turns_after_a_first_time_that_does_not_count() -> None:
    done: list[str] = []
    pairs = in_turns(lambda: done.append("a"), lambda: done.append("b"), 2)
    assert done == ["a", "b", "a", "b", "b", "a"], "who begins changes"
    assert len(pairs) == 2
    numbers = iter(range(9))
    assert in_turns(lambda: 0, lambda: 0, 2, lambda _: next(numbers)) == [(0, 1), (3, 2)]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not tell cores")
def test_one_core_holds_for_threads_that_are_started_there_and_ends() -> None:
    before, seen = os.sched_getaffinity(0), []
    with one_core():
        thread = Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
    assert [len(cores) for cores in seen] == [1]
    assert os.sched_getaffinity(0) == before
