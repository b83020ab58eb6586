"""Compiled training: the forward pass of a network as one graph, whatever the numbers of exemplars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

COMPILER = "inductor"
"""Backend of `torch.compile`."""


def compile_forward(network: nn.Module) -> None:
    """Put a compiled forward pass in the place of a network's own; ``del network.forward`` takes it away.

    The network stays the module that it is, with its parameters under their names, for what wraps it later:
    mixed precision and data parallelism go around the compiled graph.

    Args:
        network: is changed in place; its backward pass is compiled with the forward pass.
    """
    network.forward = torch.compile(network.forward, backend=COMPILER, fullgraph=True)


def require_compiler(device: torch.device) -> None:
    """Raise a ValueError unless `torch.compile` works on this machine."""
    try:
        torch.compile(_probe, backend=COMPILER)(torch.zeros(8, device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split("Set TORCHDYNAMO_VERBOSE")[0].split())
        raise ValueError(
            "expected a compiler for training.compile (a C++ compiler on a CPU, Triton on a GPU), got: "
            f"{reason}; install one, or set training.compile to false"
        ) from error


def let_sizes_vary(conditioning: Mapping[str, Any]) -> None:
    """Tell the compiler that every step has other numbers of exemplars, so that it compiles once for all.

    Args:
        conditioning: arguments of the network; only ``exemplars``, their ``features`` and their ``plan`` vary
            in size.
    """
    if "plan" not in conditioning:
        return
    plan = conditioning["plan"]
    for of_exemplars in {"exemplars", "features"} & conditioning.keys():
        torch._dynamo.maybe_mark_dynamic(conditioning[of_exemplars], 0)
    for grid in (plan.members, plan.present, plan.slots):
        torch._dynamo.maybe_mark_dynamic(grid, [0, 1])


def _probe(values: torch.Tensor) -> torch.Tensor:
    return values.exp() + 1
