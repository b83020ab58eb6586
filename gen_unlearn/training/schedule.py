"""The learning rate over the course of a training."""

from __future__ import annotations

import math
from typing import Protocol


class ScheduledTraining(Protocol):
    """What the learning rate depends on; see the training configurations."""

    @property
    def learning_rate(self) -> float:
        """Peak of the learning rate."""

    @property
    def warmup_images(self) -> int:
        """Images over which it rises."""

    @property
    def batch_size(self) -> int:
        """Images of one step."""

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""


def learning_rate(config: ScheduledTraining, images: int) -> float:
    """Return the learning rate after `images` images: a linear rise, then half a cosine down to 0."""
    total = config.steps * config.batch_size
    if images < config.warmup_images:
        return (
            config.learning_rate * (images + config.batch_size) / (config.warmup_images + config.batch_size)
        )
    fraction = (images - config.warmup_images) / max(1, total - config.warmup_images)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))
