"""Train several adapters at once: which records a stack of them reads in each step, and AdamW for all of it.

A stack has always the same number of places, and every place a batch of the same size, so that each adapter
is computed by the same instructions wherever it lies; places without an adapter are empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gen_unlearn.adapters.family import AdapterState, FitJob
from gen_unlearn.repro import keyed_order

EMPTY = -1
"""In the place of a row: there is none."""

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


@dataclass(frozen=True)
class StackPlan:
    """What a stack reads.

    Attributes:
        rows: members of the adapters, `EMPTY` for padding, int64 ``(steps, stack, batch)``.
        epochs: how often each adapter has read all of its members before a step, int64 ``(steps, stack)``.
        lengths: steps of each adapter that is there.
    """

    rows: np.ndarray
    epochs: np.ndarray
    lengths: list[int]

    @classmethod
    def of(cls, jobs: Sequence[FitJob], epochs: int, batch_size: int, stack: int, seed: int) -> StackPlan:
        """Plan every adapter's epochs, in batches of one size, the last one of each epoch padded.

        Args:
            jobs: the adapters of the stack, at most `stack`.
            epochs: how often each record is read.
            batch_size: records of an adapter for one step.
            stack: places.
            seed: of the orders.
        """
        orders = [_batches(job, epochs, batch_size, seed) for job in jobs]
        lengths = [len(order) for order in orders]
        rows = np.full((max(lengths), stack, batch_size), EMPTY, dtype=np.int64)
        before = np.zeros((max(lengths), stack), dtype=np.int64)
        for place, order in enumerate(orders):
            rows[: len(order), place] = order
            before[: len(order), place] = np.arange(len(order)) // (len(order) // epochs)
        return cls(rows, before, lengths)

    def ended(self, step: int) -> list[int]:
        """Return the places whose last step this is."""
        return [place for place, length in enumerate(self.lengths) if length == step + 1]

    def shares(self, step: int) -> Tensor:
        """Return how much each row counts in its adapter's mean, float32 ``(stack, batch)``; padding 0."""
        real = torch.from_numpy(self.rows[step] != EMPTY)
        return real / real.sum(dim=1, keepdim=True).clamp(min=1)


def _batches(job: FitJob, epochs: int, batch_size: int, seed: int) -> np.ndarray:
    """Return which members an adapter reads in each step, int64 ``(steps, batch_size)``.

    The order of an epoch is a hash of the ids: without one of them, the others come in the same order.
    """
    members = len(job.members)
    per_epoch = -(-members // batch_size)
    batches = np.full((epochs, per_epoch * batch_size), EMPTY, dtype=np.int64)
    for epoch in range(epochs):
        batches[epoch, :members] = keyed_order(job.members.ids, seed, "order", job.adapter, epoch)
    return batches.reshape(-1, batch_size)


def adamw_step(
    weight: Tensor, gradient: Tensor, memory: Sequence[Tensor], step: int, rate: float | Tensor, decay: float
) -> None:
    """Take one step of AdamW (Loshchilov and Hutter 2019) in place, number by number.

    Like `torch.optim.AdamW`, which loads the compiler of torch for seconds, and has no rate for each adapter.

    Args:
        weight: parameters of all adapters, the first dimension is the stack.
        gradient: of the same shape.
        memory: first and second moment, changed in place.
        step: which step it is, from 1.
        rate: learning rate, one for all or shaped to multiply `weight`.
        decay: weight decay.
    """
    first, second = memory
    weight.mul_(1 - rate * decay)
    first.mul_(_BETAS[0]).add_(gradient, alpha=1 - _BETAS[0])
    second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
    scale = (second / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPSILON)
    weight.sub_(rate * (first / (1 - _BETAS[0] ** step)) / scale)


def fit_in_stacks(
    jobs: Sequence[FitJob], stack: int, train: Callable[[list[FitJob]], list[AdapterState]]
) -> list[AdapterState]:
    """Train adapters, those of similar size together; return them in the order of the jobs.

    Args:
        jobs: the adapters.
        stack: places of a stack.
        train: trains at most so many.
    """
    by_size = sorted(range(len(jobs)), key=lambda place: -len(jobs[place].members))
    fitted: dict[int, AdapterState] = {}
    for start in range(0, len(jobs), stack):
        places = by_size[start : start + stack]
        fitted |= dict(zip(places, train([jobs[place] for place in places]), strict=True))
    return [fitted[place] for place in range(len(jobs))]
