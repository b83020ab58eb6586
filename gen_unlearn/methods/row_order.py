"""The order in which a term goes through its images."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from gen_unlearn.repro import numpy_generator


def rows_of_steps(count: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield what `gen_unlearn.training.batches.rows_of_step` returns for step 0, 1, 2 and so on.

    Every pass is shuffled once, not in each of its steps.

    Args:
        count: rows of the data, at least 1.
        batch_size: rows of a step.
        seed: of the order.

    Raises:
        ValueError: there is no row.
    """
    if count < 1:
        raise ValueError("expected at least 1 row to take steps with, got none")
    waiting = np.empty(0, dtype=np.int64)
    for number in itertools.count():
        waiting = np.concatenate([waiting, numpy_generator(seed, "order", number).permutation(count)])
        while len(waiting) >= batch_size:
            yield waiting[:batch_size]
            waiting = waiting[batch_size:]
