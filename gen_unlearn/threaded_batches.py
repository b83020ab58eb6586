"""What threads of this process compute together, batch by batch, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_THREADS = min(4, os.cpu_count() or 1)
"""More gain little: Python runs one at a time, and only what decodes, resizes and hashes runs beside it."""


def threaded_batches(
    count: int, size: int, compute: Callable[[slice], T]
) -> Generator[tuple[slice, T], None, None]:
    """Yield the rows of every batch with what is computed of them, in order, a few batches ahead.

    A single batch is computed without a thread.

    Args:
        count: rows.
        size: rows of a batch; the last may be shorter.
        compute: what to do with the rows of a slice; called by several threads at a time.

    Raises:
        Exception: what `compute` raises, for the first batch that fails.
    """
    batches = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    if len(batches) == 1:
        yield batches[0], compute(batches[0])
        return
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
