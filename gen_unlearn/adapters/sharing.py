"""Which of several processes fits which adapters: whole ones, so that all have about as much to do."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Protocol, runtime_checkable


@runtime_checkable
class Stacked(Protocol):
    """A family that trains several adapters at once; a stack takes as long as its largest."""

    @property
    def stack(self) -> int:
        """Adapters that are trained together."""


def share_adapters(sizes: Mapping[int, int], processes: int, stack: int = 1) -> list[list[int]]:
    """Return the adapters of each process, the largest first, in whole stacks.

    Adapters of similar size make a stack, as it is trained until the largest is done. The largest stack that
    is left goes to the process with the least to do so far (Graham 1969): none has more than a third above
    the best division, and with many adapters all have nearly the same.

    Args:
        sizes: members of each adapter.
        processes: how many there are.
        stack: adapters that are trained together.
    """
    by_size = sorted(sizes, key=lambda adapter: (-sizes[adapter], adapter))
    shares: list[list[int]] = [[] for _ in range(processes)]
    to_do = [(0, process) for process in range(processes)]  # A heap already.
    for start in range(0, len(by_size), stack):
        stacked = by_size[start : start + stack]
        load, process = heapq.heappop(to_do)
        shares[process] += stacked
        heapq.heappush(to_do, (load + sizes[stacked[0]], process))
    return shares
