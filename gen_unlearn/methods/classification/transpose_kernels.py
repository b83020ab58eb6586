"""Convolution transpose: transpose every kernel, then fine-tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import cross_entropy
from gen_unlearn.methods.loop import LoopSettings
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class TransposeKernels(LoopSettings):
    """Transpose height and width of every kernel, then fine-tune on what is retained.

    The fifth place of the NeurIPS 2023 unlearning challenge (report: arXiv 2406.09073). Kernels of 1 x 1 stay
    as they are, as do linear layers: the method is for convolutional networks.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"retain"})
    deterministic: ClassVar[bool] = False
    lr: float = 1e-3
    epochs: int = 3

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model, transposed and fine-tuned.

        Raises:
            ValueError: the model has no kernel that transposing would change, or one that is not square.
        """
        student = copy_of(model, accelerator)
        transpose_kernels(student)
        retain = self.retain_term(data.retain, cross_entropy)
        self.run(student, lambda _: [[retain]], accelerator=accelerator, seed=seed, budget=budget)
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"lr": LogUniform(1e-4, 1e-1), "epochs": Choice((1, 3, 5, 10))}


@torch.no_grad()
def transpose_kernels(model: nn.Module) -> int:
    """Transpose the kernels of all two-dimensional convolutions in place; twice restores them.

    Returns:
        Number of convolutions with kernels larger than 1 x 1.

    Raises:
        ValueError: there is no such convolution, or a kernel is not square; nothing is changed then.
    """
    kernels = {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.kernel_size != (1, 1)
    }
    for name, kernel in kernels.items():
        if kernel.shape[-1] != kernel.shape[-2]:
            raise ValueError(
                f"expected square kernels, got {tuple(kernel.shape[-2:])} in {name}; leave this method out"
            )
    if not kernels:
        raise ValueError(
            f"expected convolutions with kernels larger than 1 x 1, {type(model).__name__} has none; "
            "transposing is for convolutional networks, so use one, or leave this method out"
        )
    for kernel in kernels.values():
        kernel.copy_(kernel.transpose(-1, -2).clone())
    return len(kernels)
