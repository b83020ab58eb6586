"""Work that is shared out: each piece once, about as many to each process, none to the same at every turn."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from gen_unlearn.benchmark.sharing import share
from gen_unlearn.processes import alone


@dataclass(frozen=True)
class Place:
    """Which process this is."""

    process_index: int
    num_processes: int


def shares(pieces: int, processes: int) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(processes)]
    with alone():
        for number, done in enumerate(found):
            share(range(pieces), done.append, Place(number, processes), "work", "piece")
    return found


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("pieces", [0, 1, 6, 40])
def test_each_piece_is_done_once_and_every_process_has_as_many(pieces: int, processes: int) -> None:
    found = shares(pieces, processes)
    assert sorted(piece for done in found for piece in done) == list(range(pieces))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert all(done == sorted(done) for done in found)


def test_pieces_at_regular_places_are_not_all_one_processes() -> None:
    for done in shares(200, 2):
        assert 30 < len([piece for piece in done if piece % 2]) < 70
