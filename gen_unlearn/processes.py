"""Which of several processes this one is, and on which device it computes."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def process_state() -> PartialState:
    """Return what `accelerate launch` or `torchrun` says about this process: one of one without them.

    Processes that `torchrun` starts on a machine without an accelerator form a group too; left to itself,
    accelerate takes each of them for the only one.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (
        "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()
    )
    return PartialState(cpu=cpu)
