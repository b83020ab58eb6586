"""Adam with all of its settings, and presets whose numbers belong to a sum over pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, Literal, Self, TypeVar

import torch
from torch import nn

from gen_unlearn.methods.diffusion.settings import DiffusionSettings

MethodT = TypeVar("MethodT")


@dataclass(frozen=True, kw_only=True)
class AdamSettings(DiffusionSettings):
    """How a method takes its steps, where published settings name those of Adam.

    Attributes:
        betas: decays of Adam's averages of the gradient and of its square, each from 0 to below 1.
        eps: what Adam adds to the root of the average square, above 0.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"expected betas from 0 to below 1, got {self.betas}")
        if not self.eps > 0:
            raise ValueError(f"expected eps above 0, got {self.eps}")

    def from_sums(self, pixels: int) -> Self:
        """Return these settings, published for losses that are sums over pixels, for means over pixels.

        Every gradient is smaller by `pixels`; so are the greatest norm and Adam's `eps` then. The learning
        rate and decoupled weight decay stay.

        Args:
            pixels: numbers of an image, channels included.
        """
        clip = None if self.clip is None else self.clip / pixels
        return replace(self, clip=clip, eps=self.eps / pixels)

    def _optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        match self.optimizer:
            case "adam":
                kind: type[torch.optim.Adam] = torch.optim.Adam
            case "adamw":
                kind = torch.optim.AdamW
            case _:
                return super()._optimizer(parameters)
        return kind(parameters, self.lr, self.betas, self.eps, self.weight_decay)


@dataclass(frozen=True)
class Preset(Generic[MethodT]):
    """Published settings in the convention of this package: every loss is a mean over pixels.

    Attributes:
        method: with the settings converted.
        source: where they were published.
        published_reduction: over the pixels of an image, as published.
        pixels: numbers of an image, channels included.
    """

    method: MethodT
    source: str
    published_reduction: Literal["sum", "mean"]
    pixels: int
