"""What processes compute together, batch by batch: each computes some, and every process gets all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from accelerate.utils import gather_object

from gen_unlearn.processes import alone, process_state
from gen_unlearn.progress import progress_bar

T = TypeVar("T")


def shared_batches(count: int, size: int, compute: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
    """Yield the rows of every batch with what is computed of them, in order.

    Batch `b` is computed by process ``b % processes``. The batches are those of one process, so that what is
    computed is the same bits with any number of processes that compute alike. All of them ask for the same
    batches. A batch is computed `alone`: it meets no other process, and must not rest on what does. One batch
    of each process travels at a time.

    Args:
        count: rows, at least one.
        size: rows of a batch; the last may be shorter.
        compute: what to do with the rows of a slice.

    Raises:
        ValueError: there is no row; or `compute` raises one in some process, and then all processes do.
    """
    if count < 1 or size < 1:
        raise ValueError(f"expected at least one row, in batches of at least one, got {count} and {size}")
    state = process_state()
    batches = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    if state.num_processes == 1:
        for rows in batches:
            yield rows, compute(rows)
        return
    for first in range(0, len(batches), state.num_processes):
        turn = batches[first : first + state.num_processes]
        own = _tried(turn[state.process_index : state.process_index + 1], compute)
        for rows, found in zip(turn, gather_object(own), strict=True):
            if isinstance(found, ValueError):
                raise found
            yield rows, found


def shared_rows(
    count: int, size: int, compute: Callable[[slice], np.ndarray], description: str, unit: str = "image"
) -> np.ndarray:
    """Compute an array batch by batch, see `shared_batches`; every process gets all of it.

    Args:
        count: rows, at least one.
        size: rows of a batch; the last may be shorter.
        compute: returns the rows of a slice, ``(rows, ...)``, of one shape and type for all slices.
        description: shown before the progress bar.
        unit: what a row is.

    Returns:
        ``(count, ...)``.

    Raises:
        ValueError: see `shared_batches`.
    """
    array: np.ndarray | None = None
    with progress_bar(count, description, unit) as progress:
        for rows, found in shared_batches(count, size, compute):
            if array is None:
                array = np.empty((count, *found.shape[1:]), dtype=found.dtype)
            array[rows] = found
            progress.update(len(found))
    assert array is not None, "there is a row"
    return array


def _tried(batches: Sequence[slice], compute: Callable[[slice], T]) -> list[T | ValueError]:
    """Compute batches, or return what they fail with."""
    with alone():
        try:
            return [compute(rows) for rows in batches]
        except ValueError as error:
            return [error]
