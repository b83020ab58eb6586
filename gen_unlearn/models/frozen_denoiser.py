"""A denoiser that no deletion changes, with all that turns images and classes into what it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from gen_unlearn.pixels import to_model_input

NULL_CLASS = -1
"""In the place of a class: without any, for guidance."""


class FrozenDenoiser:
    """A frozen network, always in evaluation mode.

    Args:
        network: an unconditional or class-conditional `UNet2DModel`.
        noise: the noise schedule that it was trained with.
        classes: number of classes that images have.

    Raises:
        ValueError: the network has embeddings for some classes only.
    """

    def __init__(self, network: UNet2DModel, noise: DDPMScheduler, classes: int) -> None:
        self.network = network.eval().requires_grad_(False)
        self.noise = noise
        self.classes = classes
        embeddings = network.config.num_class_embeds
        if embeddings is not None and embeddings < classes:
            raise ValueError(f"expected a denoiser of at least {classes} classes, got one of {embeddings}")

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    @property
    def has_null_class(self) -> bool:
        """Whether it can denoise without a class, so that a class can be guided towards."""
        embeddings = self.network.config.num_class_embeds
        return embeddings is not None and embeddings > self.classes

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what it denoises."""
        config = self.network.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    def adaptable(self, layer: str) -> bool:  # noqa: ARG002, all of this kind
        """Tell by its name whether a layer may have adapters."""
        return True

    def encode(self, pixels: np.ndarray) -> Tensor:
        """Map uint8 images ``(n, height, width, channels)`` to what is denoised, float32, on the device."""
        return to_model_input(pixels).to(self.device)

    def predict(self, noisy: Tensor, timesteps: Tensor, labels: np.ndarray) -> Tensor:
        """Predict what the schedule's ``prediction_type`` names.

        Args:
            noisy: ``(batch, channels, height, width)``.
            timesteps: int64 ``(batch,)`` or ``()``.
            labels: class of each row, int64 ``(batch,)``; `NULL_CLASS` for none.
        """
        return self.network(noisy, timesteps, **self._condition(labels)).sample

    def _condition(self, labels: np.ndarray) -> dict[str, Any]:
        """Return what tells the network the classes."""
        embeddings = self.network.config.num_class_embeds
        if embeddings is None:
            return {}
        if not self.has_null_class and (labels == NULL_CLASS).any():
            raise ValueError(
                "this denoiser has no null class: set guidance_scale and label_dropout to what needs none"
            )
        known = np.where(labels == NULL_CLASS, embeddings - 1, labels)
        return {"class_labels": torch.from_numpy(known).to(self.device)}
