"""The settings of the judge."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JudgeConfig:
    """Hyper-parameters of the judge and of its training.

    `width` is the number of channels of the first stage, a multiple of 8. `max_shift` is the largest random
    shift per axis as a share of the side, rounded down to pixels: none at 8 pixels, 2 at 32. Images are
    never flipped: a mirrored digit is another sign.
    """

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 8e-3
    weight_decay: float = 0.05
    width: int = 32
    feature_dim: int = 64
    max_shift: float = 1 / 16
