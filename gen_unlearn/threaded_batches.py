"""What threads of this process compute together, batch by batch, in order."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")

_THREADS = min(4, os.cpu_count() or 1)
"""More gain little: Python runs one at a time, and only what decodes, resizes and hashes runs beside it."""

_TRIED = 4
"""Rows of each of the two batches that tell how long a row takes; the first may import what it needs."""

_LEAST_SECONDS = 200e-6
"""Rows that take less are computed without threads, which would wait for each other: on two cores, pictures
that take 0.15 ms were read more slowly by a half with two threads, and those of 0.37 ms faster by a fifth."""


def threaded_batches(
    count: int, size: int, compute: Callable[[slice], T]
) -> Generator[tuple[slice, T], None, None]:
    """Yield the rows of every batch with what is computed of them, in order.

    Two small batches come first, and decide whether it is worth while to have threads compute the others, a
    few batches ahead.

    Args:
        count: rows.
        size: most rows of a batch.
        compute: what to do with the rows of a slice; called by several threads at a time.

    Raises:
        Exception: what `compute` raises, for the first batch that fails.
    """
    tried = min(size, _TRIED)
    starts = [*range(0, min(count, 2 * tried), tried), *range(2 * tried, count, size), count]
    batches = [slice(*ends) for ends in pairwise(starts)]
    taken = []
    for rows in batches[:2]:
        started = time.perf_counter()
        found = compute(rows)
        taken.append((time.perf_counter() - started) / (rows.stop - rows.start))
        yield rows, found
    if min(taken, default=0.0) < _LEAST_SECONDS:
        for rows in batches[2:]:
            yield rows, compute(rows)
    else:
        yield from _with_threads(batches[2:], compute)


def _with_threads(
    batches: Sequence[slice], compute: Callable[[slice], T]
) -> Generator[tuple[slice, T], None, None]:
    """Yield what several threads compute, in order."""
    ahead: deque[tuple[slice, Future[T]]] = deque()
    threads = ThreadPoolExecutor(_THREADS)
    try:
        for rows in batches:
            ahead.append((rows, threads.submit(compute, rows)))
            if len(ahead) > 2 * _THREADS:
                first, found = ahead.popleft()
                yield first, found.result()
        for rest, found in ahead:
            yield rest, found.result()
    finally:
        threads.shutdown(cancel_futures=True)
