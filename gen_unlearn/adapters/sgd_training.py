"""Heads trained by gradient descent, several at once, with bits that do not depend on which are together.

Adapters are trained in stacks: their parameters lie behind one another and every product is a batched one.
A stack has always the same number of places, of the same aligned size, so that an adapter is computed by the
same instructions in every place; places without an adapter are empty. Nothing is added up over a stack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gen_unlearn.adapters.family import WEIGHTS, AdapterState, FitJob, HeadShape
from gen_unlearn.adapters.one_thread import one_thread
from gen_unlearn.adapters.records import STEPS
from gen_unlearn.adapters.sgd import HIDDEN, SgdHeads
from gen_unlearn.adapters.stacks import EMPTY, StackPlan, adamw_step, fit_in_stacks
from gen_unlearn.repro import torch_generator

_SIDE = 16
"""Every side of every matrix is a multiple of so many float32, which are the 64 bytes of a vector."""


def train_heads(heads: SgdHeads, jobs: Sequence[FitJob], shape: HeadShape, seed: int) -> list[AdapterState]:
    """Train adapters, each on its members alone; those of similar size are stacked."""
    with one_thread(), torch.no_grad():
        return fit_in_stacks(jobs, heads.stack, lambda some: _train(heads, some, shape, seed))


def _train(heads: SgdHeads, jobs: Sequence[FitJob], shape: HeadShape, seed: int) -> list[AdapterState]:
    """Train one stack."""
    sides = _sides(heads, shape)
    weights = {name: _first_weights(heads, jobs, name, side, seed) for name, side in sides.items()}
    memories = {name: [torch.zeros_like(weight) for _ in range(2)] for name, weight in weights.items()}
    table, labels = _table(jobs, shape)
    plan = StackPlan.of(jobs, heads.epochs, heads.batch_size, heads.stack, seed)
    outside = torch.zeros(_padded(shape.classes))
    outside[shape.classes :] = -math.inf
    finished: list[AdapterState | None] = [None] * len(jobs)
    padding = _padded(heads.batch_size) - heads.batch_size
    for step, rows in enumerate(_table_rows(plan, jobs)):
        inputs = table.index_select(0, rows.reshape(-1)).view(*rows.shape, -1)
        shares = F.pad(plan.shares(step), (0, padding))
        gradients = _gradients(weights, inputs, labels[rows], shares, outside, heads.hidden)
        for name, gradient in gradients.items():
            _descend(heads, weights[name], gradient, memories[name], step + 1)
        for place in plan.ended(step):
            finished[place] = {
                name: weights[name][place, :height, :width].numpy().copy()
                for name, (height, width) in sides.items()
            }
    return [state for state in finished if state is not None]


def _gradients(
    weights: dict[str, Tensor], inputs: Tensor, labels: Tensor, shares: Tensor, outside: Tensor, hidden: int
) -> dict[str, Tensor]:
    """Return the gradients of every adapter's mean cross-entropy.

    Args:
        weights: by name, float32 ``(stack, inputs, outputs)``.
        inputs: float32 ``(stack, batch, inputs)``, with a constant 1 behind the features.
        labels: int64 ``(stack, batch)``.
        shares: weight of every row in the mean, 0 for padding, float32 ``(stack, batch)``.
        outside: added to the logits, ``-inf`` for columns that are no classes.
        hidden: neurons.
    """
    below = inputs
    if hidden:
        below = torch.bmm(inputs, weights[HIDDEN]).relu_()
        below[..., hidden] = 1
    errors = torch.baddbmm(outside, below, weights[WEIGHTS]).softmax(dim=-1)
    errors.scatter_add_(2, labels[..., None], errors.new_full((1, 1, 1), -1.0).expand(*labels.shape, 1))
    errors *= shares[..., None]
    gradients = {WEIGHTS: torch.bmm(below.mT, errors)}
    if hidden:
        passed = torch.bmm(errors, weights[WEIGHTS].mT)
        passed *= below > 0
        passed[..., hidden] = 0
        gradients[HIDDEN] = torch.bmm(inputs.mT, passed)
    return gradients


def _table_rows(plan: StackPlan, jobs: Sequence[FitJob]) -> Tensor:
    """Return the row of the table of every row that a stack reads, int64 ``(steps, stack, padded batch)``."""
    steps, places, batch = plan.rows.shape
    rows = torch.zeros(steps, places, _padded(batch), dtype=torch.int64)
    starts = np.cumsum([1, *(len(job.members) for job in jobs)])
    for place, start in enumerate(starts[:-1]):
        read = plan.rows[:, place]
        rows[:, place, :batch] = torch.from_numpy(np.where(read == EMPTY, 0, start + read))
    return rows


def _table(jobs: Sequence[FitJob], shape: HeadShape) -> tuple[Tensor, Tensor]:
    """Return the rows of all adapters of a stack behind one another, after a row of zeros, and labels."""
    count = 1 + sum(len(job.members) for job in jobs)
    table = torch.zeros(count, _padded(shape.features + 1))
    labels = torch.zeros(count, dtype=torch.int64)
    start = 1
    for job in jobs:
        stop = start + len(job.members)
        table[start:stop, : shape.features] = torch.from_numpy(job.members.codes)
        labels[start:stop] = torch.from_numpy(job.members.labels)
        start = stop
    table /= STEPS
    table[1:, shape.features] = 1
    return table, labels


def _sides(heads: SgdHeads, shape: HeadShape) -> dict[str, tuple[int, int]]:
    """Return inputs, of which the last is a constant, and outputs of every layer by name."""
    if not heads.hidden:
        return {WEIGHTS: (shape.features + 1, shape.classes)}
    return {HIDDEN: (shape.features + 1, heads.hidden), WEIGHTS: (heads.hidden + 1, shape.classes)}


def _padded(side: int) -> int:
    return -(-side // _SIDE) * _SIDE


def _first_weights(
    heads: SgdHeads, jobs: Sequence[FitJob], name: str, side: tuple[int, int], seed: int
) -> Tensor:
    """Draw the first weights of a layer, uniform, each adapter's by itself; padding is 0."""
    rows, columns = side
    weights = torch.zeros(heads.stack, _padded(rows), _padded(columns + (name == HIDDEN)))
    for place, job in enumerate(jobs):
        draws = torch.rand(rows, columns, generator=torch_generator(seed, "adapter", job.adapter, name))
        weights[place, :rows, :columns] = (2 * draws - 1) * (rows - 1) ** -0.5
    return weights


def _descend(heads: SgdHeads, weight: Tensor, gradient: Tensor, memory: list[Tensor], step: int) -> None:
    """Take one step of stochastic gradient descent with momentum or of AdamW, in place, number by number.

    Like `torch.optim`, whose classes load the compiler of torch, which takes seconds.
    """
    if heads.optimizer == "sgd":
        first = memory[0]
        first.mul_(heads.momentum).add_(gradient.add_(weight, alpha=heads.weight_decay))
        weight.add_(first, alpha=-heads.learning_rate)
        return
    adamw_step(weight, gradient, memory, step, heads.learning_rate, heads.weight_decay)
