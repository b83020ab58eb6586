"""Fisher forgetting: noise on the weights that matter least for what is retained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.literals import check_literals
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.per_sample import per_sample_fisher
from gen_unlearn.methods.search_space import LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import torch_generator

_LEAST_FISHER = 1e-8
_ROW_VARIANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class FisherForgetting:
    """Add noise of variance ``alpha / (F_r + 1e-8)`` to each weight (Golatkar et al., arXiv 1911.04933).

    F_r is the diagonal Fisher information of the retained images, from per-sample gradients. The heuristics
    of published code are all off by default; theirs are in brackets.

    Attributes:
        alpha: strength of the noise, above 0.
        microbatch: images whose gradients are in memory at a time.
        largest_inverse: most that ``1 / (F_r + 1e-8)`` may be; `None` for no limit [1e3].
        largest_inverse_head: the same for the head; `None` for that of all [1e2].
        pooling: whether the variance is that of each ``"weight"``, or of matrices and kernels the mean over
            the second axis, the inputs [``"input_mean"``].
        vector_factor: the variance of biases, of normalisation and of the head is multiplied with it [10].
        head: name of the module that gives the logits; needed for what concerns the head.
        head_rows: classes whose rows of the head start from 0, with variance 1e-4 times `vector_factor`
            instead [the forgotten classes].

    Raises:
        ValueError: a number is out of range, or the head has no name but a setting of its own.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    alpha: float = 1e-9
    microbatch: int = 16
    largest_inverse: float | None = None
    largest_inverse_head: float | None = None
    pooling: Literal["weight", "input_mean"] = "weight"
    vector_factor: float = 1.0
    head: str = ""
    head_rows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_literals(self)
        for name in ("alpha", "vector_factor", "largest_inverse", "largest_inverse_head"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"expected {name} above 0, got {value}")
        if self.microbatch < 1:
            raise ValueError(f"expected microbatch of at least 1, got {self.microbatch}")
        if not self.head and (self.head_rows or self.largest_inverse_head is not None):
            raise ValueError("expected the name of the head for head_rows and largest_inverse_head, got none")
        if not self.head and self.vector_factor != 1:
            raise ValueError("expected the name of the head for vector_factor, which applies to it, got none")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model with noise on its weights; buffers stay.

        Raises:
            ValueError: the model has no module of the head's name, or the head no such row.
        """
        student = copy_of(model, accelerator)
        self._check_head(student)
        fisher = per_sample_fisher(student, data.retain, microbatch=self.microbatch, budget=budget)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                draws = torch_generator(seed, "fisher forgetting", name)
                noise = torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
                variance = self.variance(fisher[name], name)
                if self._is_head(name) and self.head_rows:
                    rows = torch.tensor(self.head_rows, device=parameter.device)
                    parameter[rows], variance[rows] = 0.0, _ROW_VARIANCE * self.vector_factor
                parameter.add_((variance.sqrt() * noise.to(parameter.device)).to(parameter.dtype))
        return student

    def variance(self, fisher: Tensor, name: str) -> Tensor:
        """Return the variance of the noise of a parameter, float64 of its shape.

        Args:
            fisher: its diagonal Fisher information, float64.
            name: of the parameter.
        """
        inverse = 1 / (fisher + _LEAST_FISHER)
        head = self._is_head(name)
        if self.largest_inverse is not None:
            inverse = inverse.clamp(max=self.largest_inverse)
        if head and self.largest_inverse_head is not None:
            inverse = inverse.clamp(max=self.largest_inverse_head)
        if self.pooling == "input_mean" and inverse.ndim > 1:
            inverse = inverse.mean(dim=1, keepdim=True).expand_as(fisher).clone()
        return self.alpha * inverse * (self.vector_factor if head or inverse.ndim == 1 else 1.0)

    def _is_head(self, name: str) -> bool:
        return bool(self.head) and name.startswith(f"{self.head}.")

    def _check_head(self, model: nn.Module) -> None:
        """Raise a ValueError if the head or one of its rows is not there."""
        own = [p for name, p in model.named_parameters() if self._is_head(name)]
        if self.head and not own:
            names = [name for name, _ in model.named_modules() if name]
            raise ValueError(f"expected the head {self.head!r} with weights, the model has {names}")
        missing = [row for row in self.head_rows if any(not 0 <= row < len(p) for p in own)]
        if missing:
            raise ValueError(f"expected rows of the head from 0 to {len(own[0]) - 1}, got {missing[0]}")

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"alpha": LogUniform(1e-10, 1e-4)}
