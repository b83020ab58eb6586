"""Convert finished samples to what the caller asked for."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gen_unlearn.pixels import to_uint8

OutputType = Literal["pil", "np", "pt", "uint8", "latent"]


def convert_samples(samples: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | Tensor:
    """Convert samples ``(images, channels, height, width)`` in about [-1, 1].

    Every type but ``"latent"`` passes through uint8, so that what is shown, saved and measured is the same.

    Args:
        samples: finished samples.
        output_type: ``"pil"`` images; ``"uint8"`` or ``"np"`` (float32 in [0, 1]), both
            ``(images, height, width, channels)``; ``"pt"``, float32 in [0, 1], channels first; ``"latent"``,
            the samples as they are.
    """
    if output_type == "latent":
        return samples
    images = to_uint8(samples)
    if output_type == "uint8":
        return images
    if output_type == "pil":
        return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images]
    if output_type == "np":
        return images.astype(np.float32) / 255
    if output_type == "pt":
        channels_first = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return channels_first.to(samples.device, torch.float32) / 255
    raise ValueError(f"expected output_type 'pil', 'np', 'pt', 'uint8' or 'latent', got {output_type!r}")
