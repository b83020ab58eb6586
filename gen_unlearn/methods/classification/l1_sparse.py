"""L1-sparse unlearning: fine-tuning with a penalty on the size of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import Batch, cross_entropy
from gen_unlearn.methods.loop import LoopSettings
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class L1Sparse(LoopSettings):
    """Minimise ``CE(retain) + gamma |weights|_1`` (Jia et al., arXiv 2304.04934).

    In epoch `e`, counted from 0, ``gamma = alpha (1 - e / E)``, with E the epochs that have a penalty.

    Attributes:
        alpha: the penalty of the first epoch, per unit of weight.
        tail_epochs: last epochs, which have no penalty.
        mode: add the penalty's subgradient to the gradient, or move every weight by ``lr gamma`` towards zero
            after each step and stop there; the second alone gives weights that are exactly zero.
        penalise_bn_bias: also penalise biases and the weights of normalisations.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"retain"})
    deterministic: ClassVar[bool] = False
    alpha: float = 5e-4
    tail_epochs: int = 0
    mode: Literal["subgradient", "proximal"] = "subgradient"
    penalise_bn_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise ValueError(f"expected alpha of at least 0, got {self.alpha}")
        if not 0 <= self.tail_epochs < self.epochs:
            raise ValueError(f"expected tail_epochs from 0 to {self.epochs - 1}, got {self.tail_epochs}")

    def gamma(self, epoch: int) -> float:
        """Return the penalty of an epoch, counted from 0."""
        return self.alpha * max(0.0, 1 - epoch / (self.epochs - self.tail_epochs))

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after `epochs` on the retained images."""
        student = copy_of(model, accelerator)
        weights = self._penalised(student)

        def penalised_loss(network: nn.Module, batch: Batch) -> Tensor:
            size = torch.stack([weight.abs().sum() for weight in weights]).sum()
            return cross_entropy(network, batch) + self.gamma(batch.epoch) * size

        loss = penalised_loss if self.mode == "subgradient" else cross_entropy
        retain = self.retain_term(data.retain, loss)

        def shrink(epoch: int, lr: float) -> None:
            soft_threshold(weights, lr * self.gamma(epoch))

        self.run(
            student,
            lambda _: [[retain]],
            accelerator=accelerator,
            seed=seed,
            budget=budget,
            after_step=shrink if self.mode == "proximal" else None,
        )
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-3, 1e-1),
            "alpha": LogUniform(1e-6, 1e-3),
            "epochs": Choice((3, 5, 10)),
        }

    def _penalised(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the weights that have a penalty."""
        if self.penalise_bn_bias:
            return list(model.parameters())
        kinds = (_NormBase, nn.GroupNorm, nn.LayerNorm)
        spared = {
            id(parameter)
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if isinstance(module, kinds) or name.endswith("bias")
        }
        return [parameter for parameter in model.parameters() if id(parameter) not in spared]


@torch.no_grad()
def soft_threshold(weights: Iterable[Tensor], length: float) -> None:
    """Move all entries towards zero by a length, at least 0, and stop there: the proximal step of L1."""
    for weight in weights:
        weight.copy_(weight.sign() * (weight.abs() - length).clamp(min=0))
