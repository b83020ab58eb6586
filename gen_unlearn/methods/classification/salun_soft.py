"""SalUn-soft: random labels, with the weights held at those of the original by an L1 penalty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.random_labels import RandomLabels
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class SalUnSoft(RandomLabels):
    """Minimise the loss of random labels plus ``beta |theta - theta0|_1`` (Fan et al., arXiv 2310.12508).

    The penalty takes the place of SalUn's mask: after every step each weight moves towards its value in the
    original by at most ``lr * beta``, with the learning rate of that step, and stops there. So weights that
    matter little are those of the original, to the bit. The values of the original stay the goal throughout.

    Attributes:
        beta: weight of the penalty, at least 0; 0 is `RandomLabels`.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    beta: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise ValueError(f"expected beta of at least 0, got {self.beta}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after `epochs` of the schedule."""
        student = copy_of(model, accelerator)
        passes = self.passes(data, seed)
        pull = PullBack(student)
        self.run(
            student,
            lambda _: passes,
            accelerator=accelerator,
            seed=seed,
            budget=budget,
            after_step=lambda _epoch, lr: pull(lr * self.beta),
        )
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(5e-4, 1e-1),
            "beta": LogUniform(1e-5, 1e-1),
            "epochs": Choice((3, 5, 10)),
        }


class PullBack:
    """Pull every weight towards its first value after a step: the proximal step of an L1 penalty.

    Args:
        model: as it is now; the weights that others are pulled to are these.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._anchor = [parameter.detach().clone() for parameter in model.parameters()]

    @torch.no_grad()
    def __call__(self, length: float) -> None:
        """Pull by a length, at least 0; weights that are nearer take their first values, to the bit."""
        for parameter, anchor in zip(self._model.parameters(), self._anchor, strict=True):
            change = parameter - anchor
            pulled = parameter - length * change.sign()
            parameter.copy_(torch.where(change.abs() <= length, anchor, pulled))
