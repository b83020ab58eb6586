"""Heads trained by gradient descent, several at once, with bits that do not depend on which are together.

Adapters are trained in stacks: their parameters lie behind one another and every product is a batched one.
A stack has always the same number of places, of the same aligned size, so that an adapter is computed by the
same instructions in every place; places without an adapter are empty. Nothing is added up over a stack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gen_unlearn.adapters.family import WEIGHTS, AdapterState, FitJob, HeadShape
from gen_unlearn.adapters.one_thread import one_thread
from gen_unlearn.adapters.records import STEPS
from gen_unlearn.adapters.stacks import EMPTY, StackPlan, adamw_step, fit_in_stacks
from gen_unlearn.repro import torch_generator

Optimizer = Literal["sgd", "adamw"]

HIDDEN = "hidden_weights"

_SIDE = 16
"""Every side of every matrix is a multiple of so many float32, which are the 64 bytes of a vector."""


@dataclass(frozen=True)
class SgdHeads:
    """Linear heads or small perceptrons, trained on cross-entropy for a fixed number of epochs.

    Attributes:
        hidden: neurons, with ReLU, between features and classes; 0 for a linear head.
        epochs: how often each record is read.
        batch_size: records for one step; an adapter with fewer members takes them all.
        optimizer: ``"sgd"`` or ``"adamw"``.
        learning_rate: of the optimiser, constant.
        momentum: of ``"sgd"``, 0 to below 1.
        weight_decay: of the optimiser.
        stack: adapters that are trained together. The last bits of the weights may depend on it.

    Raises:
        ValueError: a value that cannot be trained with.
    """

    hidden: int = 0
    epochs: int = 20
    batch_size: int = 32
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 0.001
    stack: int = 4

    def __post_init__(self) -> None:
        least = {"hidden": 0, "epochs": 1, "batch_size": 1, "stack": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"expected {name} of at least {bound}, got {getattr(self, name)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"expected learning_rate above 0, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"expected momentum from 0 to below 1, got {self.momentum}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"expected weight_decay of at least 0, got {self.weight_decay}")
        if self.optimizer not in get_args(Optimizer):
            raise ValueError(f"expected optimizer {' or '.join(get_args(Optimizer))}, got {self.optimizer!r}")

    def fit(self, jobs: Sequence[FitJob], shape: HeadShape, seed: int) -> list[AdapterState]:
        """Train adapters, each on its members alone; those of similar size are stacked."""
        with one_thread(), torch.no_grad():
            return fit_in_stacks(jobs, self.stack, lambda some: _train(self, some, shape, seed))

    def scores(self, state: AdapterState, codes: np.ndarray) -> np.ndarray:
        """Map codes, int16 ``(n, features)``, to probabilities of the classes, float64 ``(n, classes)``."""
        values = codes / STEPS
        if HIDDEN in state:
            values = np.maximum(_affine(values, state[HIDDEN]), 0)
        logits = _affine(values, state[WEIGHTS])
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def visits(self, members: int) -> int:
        """Return how often records are read to fit an adapter of so many members."""
        return self.epochs * members


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


def _affine(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    wide = weights.astype(np.float64)
    return np.asarray(values @ wide[:-1] + wide[-1])
