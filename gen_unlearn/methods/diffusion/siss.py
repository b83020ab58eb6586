"""SISS: one forward pass for what is retained and what is forgotten, weighted by importance sampling."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import copy_of_denoiser
from gen_unlearn.methods.diffusion.preset import Preset
from gen_unlearn.methods.diffusion.settings import DiffusionSettings
from gen_unlearn.methods.diffusion.siss_loss import SissLoss
from gen_unlearn.methods.diffusion.siss_study import study_presets
from gen_unlearn.methods.joined_images import join
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class Siss(DiffusionSettings):
    """Subtracted importance-sampled scores (arXiv 2503.01034).

    `x` is drawn from all training images, `a` from those to forget, and a noisy image is made from either.
    The network sees it once; the loss is ``(n / n_r) w_x l(x) - (1 + s) (n_u / n_r) w_a l(a)``, see
    `siss_weights`. With ``s = 0`` and a mixture inside (0, 1) its mean is the loss of the retained images.
    A step uses `batch_retain` such pairs; `batch_forget` plays no part. A conditional network knows the
    label: a pair with different labels shares nothing.

    In the mode ``"fixed_ratio"`` the gradient is ``g_x - c g_a`` and `c` gives the second part a norm. It
    takes a backward pass of its own to measure the norm, which is done every `norm_every` steps.

    Cost of a step: a batch forward and backward; with a fixed ratio, every `norm_every` steps, one more
    backward (``"norm"``) or two (``"share"``).

    Attributes:
        mixture: lambda, the probability that the noisy image is made from `a`, from 0 to 1.
        lambda_schedule: how lambda depends on the timestep: it does not, rises from 0 to `mixture` by a
            straight line, or has these values at equal distances, from the first timestep to the last, with
            straight lines between them; `mixture` plays no part then.
        mode: see above.
        strength: `s` of the mode ``"unbiased"``, at least 0; more forgets harder.
        ratio: norm of the second part, or its share of the norm of the first, above 0.
        ratio_unit: which of both; ``"share"`` of the first is 10 % in the study.
        norm_every: steps between two measurements of the norm, at least 1.
        largest: greatest `c`, above 0; it guards against a gradient of 0.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    mixture: float = 0.5
    lambda_schedule: Literal["constant", "rising"] | tuple[float, ...] = "constant"
    mode: Literal["unbiased", "fixed_ratio"] = "fixed_ratio"
    strength: float = 0.0
    ratio: float = 0.1
    ratio_unit: Literal["norm", "share"] = "share"
    norm_every: int = 10
    largest: float = 1000.0
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.lambda_schedule, str) and self.lambda_schedule not in ("constant", "rising"):
            raise ValueError(
                f"expected lambda_schedule to be constant, rising or numbers, got {self.lambda_schedule!r}"
            )
        if not self.knots or not all(0 <= value <= 1 for value in self.knots):
            raise ValueError(f"expected mixture and lambda_schedule from 0 to 1, got {self.knots}")
        if not self.strength >= 0:
            raise ValueError(f"expected strength of at least 0, got {self.strength}")
        for name in ("ratio", "largest"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} above 0, got {getattr(self, name)}")
        if self.norm_every < 1:
            raise ValueError(f"expected norm_every of at least 1, got {self.norm_every}")

    @property
    def knots(self) -> tuple[float, ...]:
        """Lambda at equal distances, from the first timestep to the last."""
        if self.lambda_schedule == "constant":
            return (self.mixture,)
        if self.lambda_schedule == "rising":
            return (0.0, self.mixture)
        return tuple(self.lambda_schedule)

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model after `steps`; the mean entropy of the weights is logged.

        Entropies near 0 say that noisy images hardly ever could come from both: the mixture then merely
        retains on some images of a batch and ascends on the others.
        """
        student = copy_of_denoiser(model, accelerator)
        loss = self.loss(data, seed=seed, budget=budget)
        term = self.drawn_retain(join(data.forget, data.retain), loss)
        self.train(student, [[term]], accelerator=accelerator, seed=seed, budget=budget)
        if loss.entropies:
            logging.getLogger(__name__).info(
                "mean entropy of the weights %.4f of at most 0.6931 nats", torch.stack(loss.entropies).mean()
            )
        return student

    def loss(self, data: UnlearnData, *, seed: int, budget: Budget) -> SissLoss:
        """Return the loss of a batch of all training images, which draws images to forget itself."""
        everything = len(data.forget) + len(data.retain)
        fixed = self.mode == "fixed_ratio"
        return SissLoss(
            forget=data.forget,
            retain_weight=everything / len(data.retain),
            forget_weight=(1 + self.strength) * len(data.forget) / len(data.retain),
            knots=self.knots,
            ratio=self.ratio if fixed else None,
            ratio_unit=self.ratio_unit,
            norm_every=self.norm_every,
            largest=self.largest,
            label_dropout=self.label_dropout,
            seed=seed,
            budget=budget,
        )

    def from_sums(self, pixels: int) -> Self:
        """Return these settings, published for sums over pixels, for means over pixels."""
        ratio = self.ratio / pixels if self.ratio_unit == "norm" else self.ratio
        return replace(super().from_sums(pixels), ratio=ratio)

    @classmethod
    def presets(cls) -> Mapping[str, Preset[Siss]]:
        """Return the settings of both studies by the name of the data; the norm is measured every step."""
        fixed = cls(mode="fixed_ratio", ratio_unit="norm", ratio=500.0, norm_every=1)
        return study_presets(fixed, replace(fixed, ratio=5.0))

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-5, 1e-3),
            "ratio": LogUniform(0.01, 1.0),
            "mixture": Choice((0.0, 0.25, 0.5, 0.75, 1.0)),
            "steps": Choice((50, 100, 200)),
        }
