"""Influence unlearning of a denoiser: one step of Newton's method, away from what is forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.curvature import flatten, unflatten
from gen_unlearn.methods.diffusion.denoising import DenoisingModel, copy_of_denoiser
from gen_unlearn.methods.diffusion.per_image import MICROBATCH, denoising_fisher, image_gradients
from gen_unlearn.methods.literals import check_literals
from gen_unlearn.methods.loop import batch_of, batches_of
from gen_unlearn.methods.per_sample import chosen_weights
from gen_unlearn.methods.search_space import LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.methods.woodbury import woodbury_ihvp
from gen_unlearn.repro import keyed_order


@dataclass(frozen=True, kw_only=True)
class InfluenceDenoiser:
    """Take the step ``alpha / n (H + damping I)^-1 sum_U grad`` (Koh and Liang, arXiv 1703.04730).

    n counts all training images. H is the empirical Fisher matrix of retained images, each gradient the mean
    over draws of timesteps and noise, or its diagonal. The result is a function of the data and the seed,
    which decides on the draws alone.

    Attributes:
        alpha: length of the step, above 0; 1 is the published one.
        damping: above 0, for a loss that is a mean over pixels.
        curvature: what stands for the Hessian.
        samples: most retained images that it is taken of, chosen by their ids.
        draws: timesteps of each image, evenly over the schedule.
        block_bytes: memory of a block of gradients of ``"fisher_woodbury"``, which holds two of them.

    Raises:
        ValueError: a number is out of range, or the curvature is unknown.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    alpha: float = 1.0
    damping: float = 0.1
    curvature: Literal["diag", "fisher_woodbury"] = "diag"
    samples: int = 200
    draws: int = 4
    block_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        check_literals(self)
        for name in ("alpha", "damping"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} above 0, got {getattr(self, name)}")
        for name in ("samples", "draws", "block_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after the step."""
        student = copy_of_denoiser(model, accelerator)
        weights = chosen_weights(student)
        total = self._forget_gradient(student, data.forget, seed, budget)
        rows = keyed_order(data.retain.ids, "influence curvature")[: self.samples]
        right = total / (len(data.forget) + len(data.retain))
        moved = self.alpha * self._solve(student, data.retain.select(rows), right, seed, budget)
        with torch.no_grad():
            for name, value in unflatten(flatten(weights) + moved, weights).items():
                student.get_parameter(name).copy_(value)
        return student

    def _forget_gradient(
        self, model: DenoisingModel, data: IndexedImages, seed: int, budget: Budget
    ) -> Tensor:
        """Return the sum of the gradients of the images to forget, float64 ``(d,)``."""
        sums = {n: torch.zeros_like(w, dtype=torch.float64) for n, w in chosen_weights(model).items()}
        for batch in batches_of(data, MICROBATCH):
            found = image_gradients(
                model, batch, seed=seed, role="influence forget", draws=self.draws, budget=budget
            )
            for name, gradients in found.items():
                sums[name] += gradients.sum(0, dtype=torch.float64)
        return flatten(sums)

    def _solve(
        self, model: DenoisingModel, data: IndexedImages, right: Tensor, seed: int, budget: Budget
    ) -> Tensor:
        """Return the inverse of the curvature times a vector, float64 ``(d,)``."""
        role = "influence curvature"
        if self.curvature == "diag":
            fisher = denoising_fisher(model, data, seed=seed, role=role, draws=self.draws, budget=budget)
            return right / (flatten(fisher) + self.damping)

        def read(start: int, stop: int) -> Tensor:
            parts = []
            for first in range(start, stop, MICROBATCH):
                batch = batch_of(data, np.arange(first, min(first + MICROBATCH, stop)))
                found = image_gradients(model, batch, seed=seed, role=role, draws=self.draws, budget=budget)
                parts.append(torch.cat([gradients.flatten(1) for gradients in found.values()], dim=1))
            return torch.cat(parts)

        held = min(max(1, self.block_bytes // (4 * len(right))), len(data))
        return woodbury_ihvp(read, right, self.damping, count=len(data), held=held)

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"alpha": LogUniform(0.1, 50.0), "damping": LogUniform(1e-2, 10.0)}
