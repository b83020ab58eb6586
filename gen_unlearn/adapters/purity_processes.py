"""Fit adapters in several processes at once, as `torchrun` would start them, to see whether it matters."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Protocol

import torch
from threadpoolctl import threadpool_limits

from gen_unlearn.adapters.records import Records

_PATIENCE = 300.0
"""Seconds for all processes to start and to fit."""


class Fits(Protocol):
    """What can fit adapters; see `gen_unlearn.adapters.purity.Method`."""

    def fit(self, records: Records, public: Records, adapters: Sequence[int]) -> Mapping[int, str]:
        """Return the digest of each adapter that is asked for."""


def cannot_be_sent(method: Fits) -> str | None:
    """Return why a method cannot be sent to another process, or `None` if it can."""
    kind = type(method)
    module = sys.modules.get(kind.__module__)
    if kind.__module__ == "__main__" or getattr(module, kind.__qualname__, None) is not kind:
        return f"{kind.__qualname__} is not a class at the top level of a module that can be imported"
    return None


def fit_in_processes(
    method: Fits, records: Records, public: Records, adapters: Sequence[int], processes: int
) -> list[dict[int, str]]:
    """Fit adapters in each of several new processes that know of each other; return what each one says.

    They are told about each other as `torchrun` does it, see `gen_unlearn.processes.process_state`.

    Raises:
        ValueError: a process stops, or takes longer than five minutes.
    """
    context = get_context("spawn")
    port = _free_port()
    workers, receivers = [], []
    try:
        for rank in range(processes):
            receiver, sender = context.Pipe(duplex=False)
            work = (sender, (rank, processes, port), method, records, public, tuple(adapters))
            workers.append(context.Process(target=_fit_as_one_of_several, args=work, daemon=True))
            workers[-1].start()
            sender.close()
            receivers.append(receiver)
        return [_received(receiver) for receiver in receivers]
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _received(receiver: Connection) -> dict[int, str]:
    try:
        if receiver.poll(_PATIENCE):
            found: dict[int, str] = receiver.recv()
            return found
    except EOFError:
        raise ValueError(
            "expected a fit in every process, got one that stopped; its error is above"
        ) from None
    raise ValueError(f"expected a fit in every process within {_PATIENCE:.0f} s; take less data")


def _fit_as_one_of_several(
    sender: Connection,
    place: tuple[int, int, int],
    method: Fits,
    records: Records,
    public: Records,
    adapters: Sequence[int],
) -> None:
    rank, processes, port = place
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with threadpool_limits(1):
        sender.send(dict(method.fit(records, public, adapters)))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
