"""Batches that threads compute: in order, each once, and with the first error."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from gen_unlearn.threaded_batches import threaded_batches


@pytest.mark.parametrize("count", [0, 1, 4, 5, 103])
def test_every_row_comes_once_and_in_order(count: int) -> None:
    found = list(threaded_batches(count, 4, lambda rows: np.arange(count)[rows]))
    assert [row for _, numbers in found for row in numbers] == list(range(count))
    assert all(len(numbers) == rows.stop - rows.start for rows, numbers in found)


def test_quick_rows_need_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gen_unlearn.threaded_batches._LEAST_SECONDS", 60.0)
    names = {name for _, name in threaded_batches(100, 4, lambda _: threading.current_thread().name)}
    assert names == {threading.current_thread().name}


def test_slow_rows_are_shared_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gen_unlearn.threaded_batches._THREADS", 2)
    both = threading.Barrier(2, timeout=60)

    def compute(rows: slice) -> str:
        time.sleep(0.01)
        if rows.start >= 8:  # What comes before tells how long rows take.
            both.wait()
        return threading.current_thread().name

    here, *_, there = [name for _, name in threaded_batches(24, 4, compute)]
    assert here == threading.current_thread().name != there


def test_the_first_failure_is_raised_after_what_came_before() -> None:
    def compute(rows: slice) -> int:
        if rows.start >= 8:
            raise ValueError(f"row {rows.start}")
        return rows.start

    found = threaded_batches(100, 4, compute)
    assert [next(found)[1], next(found)[1]] == [0, 4]
    with pytest.raises(ValueError, match="row 8"):
        next(found)
