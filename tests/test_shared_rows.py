"""Arrays that two processes compute together: the same bits as one computes, whatever is shared out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from two_processes import as_two

from gen_unlearn.processes import alone, from_main, is_first, process_state
from gen_unlearn.progress import progress_bar
from gen_unlearn.shared_rows import shared_rows

TABLE = np.random.default_rng(0).standard_normal((11, 3, 2))
TABLE[4, 1] = np.nan
CASES = {
    "batches of 2": (TABLE, 2),
    "one batch": (TABLE, 50),
    "one row": (TABLE[:1], 1),
    "float32": (TABLE.astype(np.float32), 3),
    "bytes": (np.arange(11, dtype=np.uint8), 4),
    "numbers": (np.arange(7), 3),
    "columns": (np.asfortranarray(TABLE[:, :, 0]), 4),
}


def together(name: str) -> np.ndarray:
    table, size = CASES[name]
    return shared_rows(len(table), size, lambda rows: table[rows], "rows")


def test_two_processes_find_the_bits_of_one(tmp_path: Path) -> None:
    as_two(lambda rank: save_file({name: together(name) for name in CASES}, tmp_path / f"{rank}"))
    for rank in range(2):
        for name, found in load_file(tmp_path / f"{rank}").items():
            table = CASES[name][0]
            assert found.dtype == table.dtype
            np.testing.assert_array_equal(found, together(name))
            np.testing.assert_array_equal(found, table)


def test_each_batch_is_computed_once_by_a_process_alone() -> None:
    def work(rank: int) -> None:
        def compute(rows: slice) -> np.ndarray:
            assert process_state().num_processes == 1
            assert is_first() == (rank == 0), "bars are shown by one process"
            return np.full(rows.stop - rows.start, rank)

        assert shared_rows(7, 2, compute, "rows").tolist() == [0, 0, 1, 1, 0, 0, 1]
        assert process_state().num_processes == 2

    as_two(work)


def test_what_one_process_refuses_all_refuse_and_go_on() -> None:
    def work(_: int) -> None:
        def compute(rows: slice) -> np.ndarray:
            if rows.start == 2:
                raise ValueError("no row 2")
            return np.zeros(1)

        with pytest.raises(ValueError, match="no row 2"):
            shared_rows(5, 1, compute, "rows")
        with pytest.raises(ValueError, match="no row 2"):
            shared_rows(1, 1, lambda _: compute(slice(2, 3)), "rows")
        assert shared_rows(2, 1, compute, "rows").tolist() == [0, 0]

    as_two(work)


def test_only_the_main_process_shows_a_bar_and_decides() -> None:
    def work(rank: int) -> None:
        assert from_main(["main", "other"][rank]) == "main"
        with progress_bar(1, "outside") as bar:
            assert bar.disable == (rank == 1)
        with alone(), progress_bar(1, "inside") as bar:
            assert bar.disable == (rank == 1)
            with alone():
                assert is_first() == (rank == 0)
        assert from_main(rank) == 0

    as_two(work)
    assert from_main("mine") == "mine"


@pytest.mark.parametrize(("count", "size"), [(0, 1), (1, 0)])
def test_nothing_is_refused(count: int, size: int) -> None:
    with pytest.raises(
        ValueError, match=f"at least one row, in batches of at least one, got {count} and {size}"
    ):
        shared_rows(count, size, lambda _: np.zeros(1), "rows")
