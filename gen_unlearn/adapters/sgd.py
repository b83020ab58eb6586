"""Heads trained by gradient descent, with bits that do not depend on which are trained together.

How, says `gen_unlearn.adapters.sgd_training`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from gen_unlearn.adapters.family import WEIGHTS, AdapterState, FitJob, HeadShape
from gen_unlearn.adapters.records import STEPS

Optimizer = Literal["sgd", "adamw"]

HIDDEN = "hidden_weights"


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
        from gen_unlearn.adapters.sgd_training import train_heads

        return train_heads(self, jobs, shape, seed)

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


def _affine(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    wide = weights.astype(np.float64)
    return np.asarray(values @ wide[:-1] + wide[-1])
