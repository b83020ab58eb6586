"""Low-rank adapters beside frozen layers, several at once: each part of a batch has its own.

An adapter of a layer ``W`` adds ``scale * B (A x)`` to what it gives (LoRA, arXiv 2106.09685); `A` maps to a
few channels, as `W` does, and `B` back, pixel by pixel. peft has the same adapters, one for a whole batch in
training; these share one pass through the frozen layers, and are called as peft calls them:
``LAYER.lora_A.weight`` and ``LAYER.lora_B.weight``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DOWN = ".lora_A.weight"
UP = ".lora_B.weight"

LoraLayer = nn.Linear | nn.Conv2d


class Factors(NamedTuple):
    """The factors of a layer's adapters.

    Attributes:
        down: `A`, ``(adapters, rank, inputs)``, of a convolution ``(adapters, rank, inputs, height, width)``.
        up: `B`, ``(adapters, outputs, rank)``, of a convolution ``(adapters, outputs, rank, 1, 1)``.
    """

    down: Tensor
    up: Tensor


def lora_layers(
    network: nn.Module, targets: Sequence[str], adaptable: Callable[[str], bool] = lambda _: True
) -> dict[str, LoraLayer]:
    """Return the layers that get adapters, by name.

    Args:
        network: any network.
        targets: ends of the layers' names, such as ``"to_q"`` or ``"to_out.0"``, as peft takes them.
        adaptable: tells by its name whether a layer may have one.

    Raises:
        ValueError: no layer has such a name, or one that has is neither linear nor a plain convolution.
    """
    found: dict[str, LoraLayer] = {}
    for name, module in network.named_modules():
        if not adaptable(name) or not any(name == end or name.endswith(f".{end}") for end in targets):
            continue
        plain = isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
        )
        if not plain:
            raise ValueError(
                f"expected linear layers and plain convolutions to adapt, got {name}, a "
                f"{type(module).__name__}; take it out of the targets"
            )
        found[name] = module
    if not found:
        raise ValueError(
            f"expected layers with names that end in {', '.join(targets)}, as lora.targets says, found none; "
            f"there are {', '.join(_ends(network, adaptable))}"
        )
    return found


def _ends(network: nn.Module, adaptable: Callable[[str], bool]) -> list[str]:
    """Return the last parts of the names of the layers that could have adapters, such as ``to_out.0``."""
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and adaptable(name)
    ]
    ends = (name.split(".") for name in names)
    return sorted({".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:]) for parts in ends})


def factor_shapes(layer: LoraLayer, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of a layer's `A` and `B`, as peft has them."""
    outputs, *inputs = layer.weight.shape
    return (rank, *inputs), (outputs, rank, *(1 for _ in inputs[1:]))


@contextmanager
def adapted(layers: Mapping[str, LoraLayer], factors: Mapping[str, Factors], scale: float) -> Iterator[None]:
    """Let layers compute with adapters.

    A batch is divided into as many equal parts as there are adapters, one behind the other.

    Args:
        layers: of one network, by name.
        factors: of each of these layers.
        scale: factor of what adapters add.

    Raises:
        ValueError: in a layer, a batch that cannot be divided so.
    """
    with ExitStack() as hooks:
        for name, layer in layers.items():
            handle = layer.register_forward_hook(_hook(factors[name], scale))
            hooks.callback(handle.remove)
        yield


def _hook(factors: Factors, scale: float) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    def add(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if len(inputs[0]) % len(factors.down):
            raise ValueError(
                f"expected a batch that can be divided into {len(factors.down)} equal parts, got "
                f"{len(inputs[0])} rows; give every adapter as many"
            )
        change = _convolved if isinstance(layer, nn.Conv2d) else _multiplied
        return output + scale * change(layer, inputs[0], factors).reshape(output.shape)

    return add


def _multiplied(_: nn.Module, inputs: Tensor, factors: Factors) -> Tensor:
    parts = inputs.reshape(len(factors.down), -1, inputs.shape[-1])
    return torch.bmm(torch.bmm(parts, factors.down.mT), factors.up.mT)


def _convolved(layer: nn.Module, inputs: Tensor, factors: Factors) -> Tensor:
    """Convolve each part with its own adapter, as the groups of one convolution."""
    assert isinstance(layer, nn.Conv2d)
    adapters, rank = factors.down.shape[:2]
    parts = inputs.reshape(adapters, -1, *inputs.shape[1:])
    rows = parts.shape[1]
    side_by_side = parts.transpose(0, 1).reshape(rows, -1, *inputs.shape[2:])
    down = factors.down.reshape(adapters * rank, *factors.down.shape[2:])
    up = factors.up.reshape(-1, rank, 1, 1)
    narrow = F.conv2d(
        side_by_side,
        down,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=adapters,
    )
    wide = F.conv2d(narrow, up, groups=adapters)
    return wide.view(rows, adapters, -1, *wide.shape[2:]).transpose(0, 1)
