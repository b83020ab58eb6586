"""Tests of how steps of a method and of a loop by hand are timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from evaluation.method_speed import _fastest_steps, _Turns


def steps(count: int, log: list[str], name: str, error: Exception | None = None) -> Callable[[], None]:
    """Return a training of so many steps, which may end with an error."""

    def work() -> None:
        weight = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for _ in range(count):
            weight.grad = torch.ones(1)
            log.append(name)
            optimizer.step()
        if error is not None:
            raise error

    return work


def test_both_take_their_steps_one_by_one() -> None:
    log: list[str] = []
    first, second = _Turns().seconds(steps(3, log, "a"), steps(3, log, "b"))
    assert log == ["a", "b"] * 3
    assert len(first) == len(second) == 3


def test_each_side_keeps_its_steps_whoever_begins() -> None:
    def slow() -> None:
        weight = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for _ in range(4):
            weight.grad = torch.ones(1)
            time.sleep(0.02)
            optimizer.step()

    log: list[str] = []
    own, other = _fastest_steps(slow, steps(4, log, "fast"), repeats=2)
    assert len(own) == len(other) == 3, "the first step does not count"
    assert len(log) == 3 * 4, "nor does the first run"
    assert (own >= 0.02).all()
    assert (other < 0.02).all()


@pytest.mark.parametrize(("first", "second"), [(2, 5), (5, 2)])
def test_another_number_of_steps_is_an_error_and_no_wait(first: int, second: int) -> None:
    with pytest.raises(ValueError, match=str([first, second]).replace("[", r"\[")):
        _Turns().seconds(steps(first, [], "a"), steps(second, [], "b"))


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_either_is_seen(failing: int) -> None:
    errors = [RuntimeError("not finite") if place == failing else None for place in range(2)]
    with pytest.raises(RuntimeError, match="not finite"):
        _Turns().seconds(steps(2, [], "a", errors[0]), steps(4, [], "b", errors[1]))
