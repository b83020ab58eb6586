"""NegMerge: the part of several task vectors that all of them agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.task_arithmetic import moved, task_vector
from gen_unlearn.methods.loop import LoopSettings
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import derive_seed


@dataclass(frozen=True, kw_only=True)
class NegMerge(LoopSettings):
    """Return ``theta0 - scale * tau`` with the merged task vector ``tau`` (Kim et al., arXiv 2410.05583).

    The original is fine-tuned on the images to forget once for each learning rate. Coordinates whose sign is
    not the same in all task vectors are dropped, the others averaged; see `merged`. The cost is that of all
    trainings. Buffers stay those of the original.

    Attributes:
        scale: how far to go back, above 0.
        rates: the learning rates as multiples of `lr`, at least two; each training has an order of its own.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget"})
    deterministic: ClassVar[bool] = False
    scale: float = 1.0
    rates: tuple[float, ...] = (0.5, 1.0, 2.0)
    epochs: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ValueError(f"expected scale above 0, got {self.scale}")
        if len(self.rates) < 2 or not min(self.rates) > 0:
            raise ValueError(
                f"expected at least two rates, all above 0, got {self.rates}; for one use TaskArithmetic"
            )

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model, moved against the merged task vector."""
        vectors = [
            task_vector(
                replace(self, lr=rate * self.lr),
                model,
                data.forget,
                accelerator=accelerator,
                seed=derive_seed(seed, "negmerge", number),
                budget=budget,
            )
            for number, rate in enumerate(self.rates)
        ]
        return moved(model, merged(vectors), -self.scale, accelerator)

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-4, 1e-1),
            "scale": LogUniform(0.05, 5.0),
            "epochs": Choice((3, 5, 10)),
        }


def merged(vectors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average task vectors where all have the same sign; 0 elsewhere, also where one of them is 0.

    Args:
        vectors: parameter name -> tensor, all of the same names and shapes.
    """
    found = {}
    for name in vectors[0]:
        stacked = torch.stack([vector[name] for vector in vectors])
        agree = stacked.sign().sum(dim=0).abs() == len(vectors)
        found[name] = torch.where(agree, stacked.mean(dim=0), 0.0)
    return found
