"""Influence unlearning: one Newton step towards the solution without the images to forget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.curvature import (
    OutputLoss,
    conjugate_gradients,
    flatten,
    ggn_product,
    unflatten,
)
from gen_unlearn.methods.literals import check_literals
from gen_unlearn.methods.logits import logits
from gen_unlearn.methods.loop import Loss, batch_of, batches_of
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.per_sample import (
    chosen_weights,
    per_sample_fisher,
    per_sample_gradients,
    summed_gradient,
)
from gen_unlearn.methods.search_space import LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.methods.woodbury import woodbury_ihvp
from gen_unlearn.repro import keyed_order

Curvature = Literal["fisher_woodbury", "ggn_cg", "diag", "identity"]
"""What stands for the Hessian: the empirical Fisher matrix, the Gauss-Newton matrix, the diagonal of the
Fisher matrix (all with damping), or nothing."""

_MICROBATCH = 16


@dataclass(frozen=True, kw_only=True)
class InfluenceUnlearning:
    """Take the step ``alpha H^-1 [sum_f grad / N - n_f / (N n_r) sum_r grad]`` (arXiv 1703.04730).

    For ``alpha = 1`` it is the Newton step of the loss ``mean_r + damping / 2 |theta|^2`` from a stationary
    point of ``mean_all + damping / 2 |theta|^2``: exact for a quadratic loss. N, n_f and n_r count all
    images, those to forget and those retained; H is the curvature of `samples` retained images.

    Attributes:
        alpha: length of the step, above 0.
        damping: added to the diagonal of the curvature, above 0; the weight decay of the original or more.
        curvature: what stands for the Hessian, see `Curvature`; ``"identity"`` is a plain gradient step.
        samples: most retained images that the curvature is taken of, chosen by their ids.
        modules: names of the modules whose weights move, such as the head; empty for all.
        block_bytes: memory of a block of per-sample gradients, of ``"fisher_woodbury"``, which holds two of
            them; where 1000 gradients do not fit into one, they are taken several times.
        iterations: most products with the Gauss-Newton matrix.
        tolerance: relative residual at which ``"ggn_cg"`` ends.

    Raises:
        ValueError: a number is out of range, or the curvature is unknown.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = True
    alpha: float = 1.0
    damping: float = 0.1
    curvature: Curvature = "fisher_woodbury"
    samples: int = 1000
    modules: tuple[str, ...] = ()
    block_bytes: int = 2 << 30
    iterations: int = 20
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        check_literals(self)
        for name in ("alpha", "damping", "tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} above 0, got {getattr(self, name)}")
        for name in ("samples", "block_bytes", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")

    def __call__(
        self,
        model: nn.Module,
        data: UnlearnData,
        *,
        accelerator: Accelerator,
        seed: int,  # noqa: ARG002
        budget: Budget,
    ) -> nn.Module:
        """Return a copy of the model after the step."""
        student = copy_of(model, accelerator)
        self.step(student, data, F.cross_entropy, budget=budget)
        return student

    def step(self, model: nn.Module, data: UnlearnData, loss: OutputLoss, *, budget: Budget) -> None:
        """Take the step in place, for any loss of the logits.

        Raises:
            ValueError: a module that the model lacks, or one without weights.
        """
        own = _loss_of_batch(loss)
        weights = chosen_weights(model, _names_in(model, self.modules))
        sums = [summed_gradient(model, part, own, budget=budget) for part in (data.forget, data.retain)]
        forget, retain = (flatten({name: one[name] for name in weights}) for one in sums)
        n_f, n_r = len(data.forget), len(data.retain)
        right = forget / (n_f + n_r) - n_f / ((n_f + n_r) * n_r) * retain
        rows = keyed_order(data.retain.ids, "influence curvature")[: self.samples]
        moved = self.alpha * self._solve(model, data.retain.select(rows), weights, right, loss, budget)
        with torch.no_grad():
            for name, value in unflatten(flatten(weights) + moved, weights).items():
                model.get_parameter(name).copy_(value)

    def _solve(
        self,
        model: nn.Module,
        data: IndexedImages,
        weights: dict[str, Tensor],
        right: Tensor,
        loss: OutputLoss,
        budget: Budget,
    ) -> Tensor:
        """Return the inverse of the curvature times a vector, float64 ``(d,)``."""
        own = _loss_of_batch(loss)
        match self.curvature:
            case "identity":
                return right
            case "diag":
                fisher = per_sample_fisher(model, data, own, budget=budget)
                return right / (flatten({name: fisher[name] for name in weights}) + self.damping)
            case "ggn_cg":
                batches = list(batches_of(data, 250))

                def product(vector: Tensor) -> Tensor:
                    budget.count(forward=2 * len(data), backward=len(data))
                    return ggn_product(model, batches, weights, vector, loss) + self.damping * vector

                return conjugate_gradients(
                    product, right, iterations=self.iterations, tolerance=self.tolerance
                )
            case "fisher_woodbury":

                def read(start: int, stop: int) -> Tensor:
                    return _gradient_rows(model, data, range(start, stop), weights, loss, budget)

                size = sum(weight.numel() * weight.element_size() for weight in weights.values())
                held = min(max(1, self.block_bytes // size), len(data))
                return woodbury_ihvp(read, right, self.damping, count=len(data), held=held)

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"alpha": LogUniform(0.1, 50.0), "damping": LogUniform(1e-4, 1.0)}


def _loss_of_batch(loss: OutputLoss) -> Loss:
    """Return a loss of a model and a batch."""
    return lambda model, batch: loss(logits(model, batch.inputs), batch.labels)


def _names_in(model: nn.Module, modules: Sequence[str]) -> list[str] | None:
    """Return the names of the parameters inside of modules, `None` for all of them."""
    if not modules:
        return None
    known = {name for name, _ in model.named_modules()}
    unknown = [name for name in modules if name not in known]
    if unknown:
        own = sorted(known - {""})
        raise ValueError(f"expected names of modules, got {unknown[0]!r}; the model has {own}")
    return [name for name, _ in model.named_parameters() if any(name.startswith(f"{m}.") for m in modules)]


def _gradient_rows(
    model: nn.Module,
    data: IndexedImages,
    rows: range,
    weights: Mapping[str, Tensor],
    loss: OutputLoss,
    budget: Budget,
) -> Tensor:
    """Return the gradients of some images, one a row, ``(rows, d)``."""
    budget.count(forward=len(rows), backward=len(rows))
    first = next(iter(weights.values()))
    size = sum(weight.numel() for weight in weights.values())
    found = torch.empty(len(rows), size, dtype=first.dtype, device=first.device)
    for start in range(rows.start, rows.stop, _MICROBATCH):
        batch = batch_of(data, np.arange(start, min(start + _MICROBATCH, rows.stop)))
        parts = per_sample_gradients(model, batch, _loss_of_batch(loss), tuple(weights))
        place = start - rows.start
        torch.cat([parts[n].flatten(1) for n in weights], dim=1, out=found[place : place + len(batch.ids)])
    return found
