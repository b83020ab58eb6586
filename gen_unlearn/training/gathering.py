"""What the processes of a training compute together: gathered rows, and batch normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rows_of_process(count: int, process: int, processes: int) -> slice:
    """Return the rows of one of several processes, which have as many as each other, or one more."""
    share, more = divmod(count, processes)
    first = process * share + min(process, more)
    return slice(first, first + share + (process < more))


def of_all_processes(part: Tensor, count: int) -> Tensor:
    """Return the rows of all processes, in their order; gradients flow back to where a row was computed.

    Args:
        part: what this process computed of its `rows_of_process`, ``(rows, ...)``.
        count: rows of all processes.
    """
    gathered: Tensor = _Gather.apply(part, count)
    return gathered


@contextmanager
def normalised_together(network: nn.Module, processes: int) -> Iterator[None]:
    """Let batch normalisation of a network in training look at the batches of all processes.

    As `torch.nn.SyncBatchNorm`, which computes on GPUs only; the network is what it was afterwards.
    """
    parts = [part for part in network.modules() if type(part) in _TOGETHER] if processes > 1 else []
    for part in parts:
        part.__class__ = _TOGETHER[type(part)]
    try:
        yield
    finally:
        for part in parts:
            part.__class__ = _ALONE[type(part)]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, count: int) -> Tensor:
        processes = dist.get_world_size()
        slices = [rows_of_process(count, process, processes) for process in range(processes)]
        ctx.rows = slices[dist.get_rank()]
        longest = slices[0].stop
        padded = torch.cat([part, part.new_zeros(longest - len(part), *part.shape[1:])])
        parts = [torch.empty_like(padded) for _ in slices]
        dist.all_gather(parts, padded)
        return torch.cat([found[: rows.stop - rows.start] for found, rows in zip(parts, slices, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.rows], None


class _Sum(torch.autograd.Function):
    """The sum over processes; the loss is the mean over them, and so its gradient is their sum too."""

    @staticmethod
    def forward(_ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class _Together(nn.modules.batchnorm._BatchNorm):
    """Normalise with mean and variance over the batches of all processes (Ioffe and Szegedy 2015)."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return super().forward(inputs)
        assert self.momentum is not None, "encoders have running statistics"
        axes = [axis for axis in range(inputs.ndim) if axis != 1]
        shape = [1, -1, *[1] * (inputs.ndim - 2)]
        values = inputs.float()
        rows = values.new_tensor([inputs.numel() / inputs.shape[1]])
        total = _Sum.apply(torch.cat([values.sum(axes), rows]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = values - mean.reshape(shape)
        variance = _Sum.apply(centred.square().sum(axes)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = (variance + self.eps).rsqrt() * self.weight
        return torch.addcmul(self.bias.reshape(shape), centred, scale.reshape(shape)).to(inputs.dtype)


class _BatchNorm1d(_Together, nn.BatchNorm1d):
    pass


class _BatchNorm2d(_Together, nn.BatchNorm2d):
    pass


_TOGETHER: dict[type, type] = {nn.BatchNorm1d: _BatchNorm1d, nn.BatchNorm2d: _BatchNorm2d}
_ALONE: dict[type, type] = {together: alone for alone, together in _TOGETHER.items()}
