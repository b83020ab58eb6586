"""Which of several processes this one is, and on which device it computes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

T = TypeVar("T")

_DEVICE = "ACCELERATE_TORCH_DEVICE"
_KEEP_GROUP = "FORK_LAUNCHED"
"""With it, `Accelerator.end_training` does not destroy the group of processes."""

_MEETING = ("MASTER_ADDR", "MASTER_PORT")
_PLACES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    *("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    *("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
)
"""What launchers say of a process, and accelerate 1.15 reads (`accelerate.utils.environment`)."""

_PATIENCE = timedelta(days=7)
"""How long processes wait for each other: pieces of work are done whole, and launchers end a broken group."""

_FIRST: ContextVar[bool | None] = ContextVar("first of the group", default=None)
"""Of a process that works alone: whether it is the main one of its group."""


def process_state() -> PartialState:
    """Return what `accelerate launch` or `torchrun` says about this process: one of one without them.

    Processes that `torchrun` starts on a machine without an accelerator form a group too; left to itself,
    accelerate takes each of them for the only one.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (
        "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    )
    return PartialState(cpu=cpu, timeout=_PATIENCE)


def is_first() -> bool:
    """Tell whether this is the main process of its group, also while it works `alone`."""
    known = _FIRST.get()
    return process_state().is_main_process if known is None else known


def from_main(value: T) -> T:
    """Return what the main process has; each of several processes calls it with what it has itself.

    A choice that decides whether processes meet again must be the same in all of them. What is looked up,
    such as whether a file exists, is not: another program may write it in between, or a network show it late.
    """
    if process_state().num_processes == 1:
        return value
    told = [value]
    broadcast_object_list(told)
    return told[0]


@contextmanager
def alone() -> Iterator[None]:
    """Count this process as the only one, on the device that it has in its group; put the group back after.

    A model that is trained within is trained whole by this process: nothing is wrapped for a group, waited
    for or gathered, so that processes can train different models, or none; the end of a training leaves the
    group as it is. Accelerators that were made outside stay in the group, and those made within are for use
    within. What is asked of `torch.distributed` itself still reaches the group. The setting belongs to the
    whole process, with all of its threads, and may be nested.
    """
    device, first = str(process_state().device), is_first()
    hidden = dict.fromkeys((*_PLACES, *_MEETING))
    with ExitStack() as settings:
        settings.callback(_FIRST.reset, _FIRST.set(first))
        settings.enter_context(_environment({**hidden, _DEVICE: device, _KEEP_GROUP: "1"}))
        for state in (PartialState, AcceleratorState, GradientState):
            settings.enter_context(_forgotten(state))
        yield


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables of the environment, or take away those that are `None`; put all back."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _forgotten(state: type) -> Iterator[None]:
    """Let a class whose objects share one state begin with none; those that there are keep theirs."""
    shared = vars(state)["_shared_state"]  # On a TPU it is a descriptor, which reading it would hide.
    state._shared_state = {}  # type: ignore[attr-defined]
    try:
        yield
    finally:
        state._shared_state = shared  # type: ignore[attr-defined]
