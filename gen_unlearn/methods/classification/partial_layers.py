"""CF-k and EU-k: train only the last blocks, from the original weights or from fresh ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from accelerate import Accelerator
from torch import nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import cross_entropy
from gen_unlearn.methods.loop import LoopSettings
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.reinitialise import reinit
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class CatastrophicForgettingK(LoopSettings):
    """Train the last blocks on what is retained, from their original weights (arXiv 2201.06640).

    All other weights and buffers stay as they are, to the bit.

    Attributes:
        k: number of blocks to train, the head among them.
        modules: names of the modules to train instead of the last `k`; the head is always added.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"retain"})
    deterministic: ClassVar[bool] = False
    k: int = 1
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"expected k of at least 1, the head, got {self.k}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model in which the named blocks were trained for `epochs`."""
        student = copy_of(model, accelerator)
        self._train(student, self.trained(student), data, accelerator, seed, budget)
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"lr": LogUniform(1e-3, 1e-1), "k": Choice((1, 2)), "epochs": Choice((3, 5, 10))}

    def trained(self, model: nn.Module) -> tuple[str, ...]:
        """Return the names of the modules that are trained, the head last.

        Raises:
            ValueError: the model has fewer than `k` blocks, or lacks a named module.
        """
        blocks = weight_blocks(model)
        if self.modules:
            known = {name for name, _ in model.named_modules() if name}
            unknown = [name for name in self.modules if name not in known]
            if unknown:
                raise ValueError(
                    f"expected names of modules, got {unknown[0]!r}; the blocks are {', '.join(blocks)}"
                )
            return (*(name for name in self.modules if name != blocks[-1]), blocks[-1])
        if self.k > len(blocks):
            raise ValueError(f"expected k up to {len(blocks)} for {', '.join(blocks)}, got {self.k}")
        return blocks[-self.k :]

    def _train(
        self,
        student: nn.Module,
        names: tuple[str, ...],
        data: UnlearnData,
        accelerator: Accelerator,
        seed: int,
        budget: Budget,
    ) -> None:
        """Train some modules in place."""
        student.requires_grad_(False)
        for name in names:
            student.get_submodule(name).requires_grad_(True)
        retain = self.retain_term(data.retain, cross_entropy)
        self.run(
            student,
            lambda _: [[retain]],
            accelerator=accelerator,
            seed=seed,
            budget=budget,
            modules=names,
        )
        student.requires_grad_(True)


@dataclass(frozen=True, kw_only=True)
class ExactUnlearningK(CatastrophicForgettingK):
    """Train the last blocks on what is retained, from fresh weights (arXiv 2201.06640).

    The blocks that stay still know what is forgotten: only with all blocks is this retraining. It may take as
    many epochs as the training of the original, each with a short backward pass.
    """

    epochs: int = 30

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model in which the named blocks were drawn anew and trained for `epochs`."""
        student = copy_of(model, accelerator)
        names = self.trained(student)
        reinit(student, names, seed)
        self._train(student, names, data, accelerator, seed, budget)
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"lr": LogUniform(1e-3, 1e-1), "k": Choice((1, 2)), "epochs": Choice((10, 30, 60))}


def weight_blocks(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that hold a model's weights, in the order of the data, the head last.

    These are the model's own ``block_names``, or its direct children that have weights.
    """
    named = getattr(model, "block_names", None)
    if named is not None:
        return tuple(named)
    return tuple(name for name, child in model.named_children() if any(True for _ in child.parameters()))
