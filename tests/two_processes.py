"""Do something in two processes, as a launcher would start them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from accelerate import PartialState
from run_factory import ended, fork


def as_two(work: Callable[[int], object]) -> None:
    """Call `work` with the rank in two processes, and check that neither fails or leaves the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def child(rank: int) -> Callable[[], None]:
        return lambda: _in_group(rank, port, work)

    children = [fork(child(rank)) for rank in range(2)]
    assert [ended(number) for number in children] == [0, 0]


def _in_group(rank: int, port: int, work: Callable[[int], object]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    PartialState._reset_state()
    work(rank)
    assert PartialState().num_processes == 2
