"""A feature extractor that needs no weights: for tests, and for checks without a network connection."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import digest_arrays, digest_bytes, torch_generator

_PIXELS = 2**20
"""Pixels that go through the network at once; each takes 256 bytes in the first layer."""


class RandomConvFeatures:
    """Extract features with a small convolutional network of fixed random weights.

    It tells distributions apart, but its distances have no perceptual meaning. Takes one or three channels
    (grey is repeated to three) and images of at least 8 x 8 pixels.
    """

    resize = "none"

    def __init__(self, seed: int = 0, dim: int = 64, device: torch.device | str = "cpu") -> None:
        generator = torch_generator("random-conv", seed)
        shapes = [(32, 3, 3, 3), (32, 32, 3, 3), (dim, 32, 3, 3)]
        kernels = [
            torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:])) for shape in shapes
        ]
        self.dim = dim
        self.name = f"random-conv-{dim} (seed {seed}, untrained; comparable only with itself)"
        weights = digest_arrays(*(kernel.numpy() for kernel in kernels))
        self.digest = digest_bytes(b"pixels/127.5-1; 3x (conv, relu); mean", weights.encode())
        self._kernels = [kernel.to(device) for kernel in kernels]

    def preprocess(self, image: np.ndarray) -> torch.Tensor:
        """Map a uint8 image to values in [-1, 1] and three channels.

        Raises:
            ValueError: the image is not uint8, has another number of channels, or is too small.
        """
        pixels = to_model_input(image[None])[0]
        if pixels.shape[0] not in (1, 3) or min(pixels.shape[1:]) < 8:
            raise ValueError(
                f"expected one or three channels and at least 8 x 8 pixels, got an image of shape "
                f"{image.shape}; convert it to grey or RGB first"
            )
        return pixels.expand(3, -1, -1)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs ``(n, 3, height, width)`` to float32 features ``(n, dim)``."""
        few = max(1, _PIXELS // (inputs.shape[2] * inputs.shape[3]))
        return torch.cat([self._features(some) for some in inputs.split(few)])

    def _features(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = inputs.to(self._kernels[0].device)
        for stride, kernel in zip((1, 2, 2), self._kernels, strict=True):
            hidden = F.relu(F.conv2d(hidden, kernel, stride=stride, padding=1))
        return hidden.mean(dim=(2, 3))
