"""Dealing adapters out to processes."""

from __future__ import annotations

import numpy as np
import pytest

from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.sgd import SgdHeads
from gen_unlearn.adapters.sharing import Stacked, share_adapters
from gen_unlearn.repro import numpy_generator

SIZES = {
    adapter: 1 + int(size)
    for adapter, size in enumerate(numpy_generator(0, "sizes").exponential(100, size=200))
}


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("stack", [1, 4])
def test_every_adapter_goes_to_one_process(processes: int, stack: int) -> None:
    shares = share_adapters(SIZES, processes, stack)
    assert len(shares) == processes
    assert sorted(adapter for share in shares for adapter in share) == sorted(SIZES)


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_all_have_about_as_much_to_do(processes: int) -> None:
    loads = [sum(SIZES[adapter] for adapter in share) for share in share_adapters(SIZES, processes)]
    assert max(loads) - min(loads) <= min(SIZES.values()) + 10
    assert max(loads) <= 1.01 * np.mean(loads)


def test_a_stack_holds_adapters_of_similar_size() -> None:
    by_size = sorted(SIZES, key=lambda adapter: (-SIZES[adapter], adapter))
    rank = {adapter: place for place, adapter in enumerate(by_size)}
    for share in share_adapters(SIZES, 3, 4):
        for start in range(0, len(share), 4):
            ranks = [rank[adapter] for adapter in share[start : start + 4]]
            assert ranks == list(range(ranks[0], ranks[0] + len(ranks)))


def test_the_largest_first_and_equal_ones_in_turn() -> None:
    assert share_adapters({5: 3, 2: 3, 9: 8, 4: 3}, 2) == [[9], [2, 4, 5]]
    assert share_adapters({0: 1, 1: 1, 2: 1}, 2) == [[0, 2], [1]]


def test_more_processes_than_adapters_leave_some_idle() -> None:
    assert share_adapters({7: 4}, 3) == [[7], [], []]
    assert share_adapters({}, 2) == [[], []]


def test_which_families_are_stacked() -> None:
    assert isinstance(SgdHeads(), Stacked)
    assert not isinstance(RidgeHeads(), Stacked)
