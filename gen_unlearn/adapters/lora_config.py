"""The settings of LoRA adapters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Composition = Literal["route", "mean", "mixture"]
"""How adapters share in an image that is generated."""


@dataclass(frozen=True)
class LoraConfig:
    """How LoRA adapters of a denoiser look, and how they are trained.

    Attributes:
        rank: of the change of each layer.
        alpha: what adapters add is scaled by ``alpha / rank``.
        targets: ends of the names of the layers that are adapted: linear layers and convolutions.
        epochs: how often each image is read.
        batch_size: images of an adapter for one step; the last batch of an epoch is filled up with nothing.
        learning_rate: of AdamW; it falls to 0 by a cosine over the steps of the adapter.
        weight_decay: of AdamW.
        max_grad_norm: the gradient of each adapter is scaled down to this norm; 0 leaves it as it is.
        label_dropout: probability that an image's class is not told, where the denoiser can do without.
        horizontal_flip: mirror images with probability 1/2.
        stack: adapters that are trained together. The last bits of the weights may depend on it. A deletion
            that touches fewer adapters takes as long as one that touches so many.

    Raises:
        ValueError: a value that cannot be trained with.
    """

    rank: int = 4
    alpha: float = 4.0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "time_emb_proj")
    epochs: int = 100
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    label_dropout: float = 0.1
    horizontal_flip: bool = False
    stack: int = 4

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "batch_size", "stack"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        for name in ("alpha", "learning_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"expected {name} above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "max_grad_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"expected {name} of at least 0, got {getattr(self, name)}")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"expected label_dropout from 0 to below 1, got {self.label_dropout}")
        if not self.targets:
            raise ValueError("expected targets, the ends of the names of layers to adapt, got none")

    @property
    def scale(self) -> float:
        """Factor of what adapters add."""
        return self.alpha / self.rank
