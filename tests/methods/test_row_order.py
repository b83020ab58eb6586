"""The order of images over many steps."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from gen_unlearn.methods.row_order import rows_of_steps
from gen_unlearn.training.batches import rows_of_step


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
def test_is_that_of_every_step_alone(batch_size: int) -> None:
    found = list(islice(rows_of_steps(7, batch_size, seed=5), 12))
    for step, rows in enumerate(found):
        np.testing.assert_array_equal(rows, rows_of_step(7, batch_size, step, seed=5))
