"""Blocks of images, each computed by one of several processes, for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import TypeVar

from accelerate.utils import gather_object

from gen_unlearn.processes import process_state

_AT_ONCE = 16
"""Blocks of a process between two exchanges: few enough to lie in memory twice."""

T = TypeVar("T")


def shared_blocks(starts: range, compute: Callable[[int], T]) -> Iterator[tuple[int, T]]:
    """Yield the start of every block with what is computed of it, in order, in every process.

    A block is computed by one process alone, so that its numbers are those of a single process.

    Args:
        starts: where the blocks begin.
        compute: what to do with the block that begins there.
    """
    process = process_state()
    if process.num_processes == 1:
        for start in starts:
            yield start, compute(start)
        return
    at_once = _AT_ONCE * process.num_processes
    for first in range(0, len(starts), at_once):
        own = starts[first : first + at_once][process.process_index :: process.num_processes]
        yield from sorted(gather_object([(start, compute(start)) for start in own]), key=itemgetter(0))
