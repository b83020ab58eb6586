"""The one mapping between stored pixels and what networks see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_PLAUSIBLE_VALUE = 8.0
"""A finished sample lies in [-1, 1] up to a little overshoot; a diverged sampler is far beyond this."""


def to_model_input(images: np.ndarray) -> Tensor:
    """Map uint8 ``(n, height, width, channels)`` to float32 ``(n, channels, height, width)`` in [-1, 1]."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"expected uint8 images of shape (n, height, width, channels), got {images.dtype} {images.shape}"
        )
    import torch

    channels_first = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return channels_first.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(samples: Tensor) -> np.ndarray:
    """Map samples ``(images, channels, height, width)`` in [-1, 1] to uint8, rounded to the nearest value.

    Values a little outside of [-1, 1] are clamped. A sampler that diverged can still give a plausible
    distance once clamped, so values beyond `LARGEST_PLAUSIBLE_VALUE` are an error.
    """
    import torch

    largest = samples.abs().max().item() if samples.numel() else 0.0
    if not largest <= LARGEST_PLAUSIBLE_VALUE:
        raise ValueError(
            f"the sampler diverged: values reach {largest:.3g} where [-1, 1] is expected; "
            f"use more steps or another scheduler (DDIM is the safe choice)"
        )
    scaled = samples.float().add(1.0).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def resize_images(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 images ``(n, height, width, channels)`` to ``(height, width)``, bicubic, antialiased."""
    if images.shape[1:3] == size:
        return images
    resized = np.empty((len(images), *size, images.shape[3]), dtype=np.uint8)
    for target, image in zip(resized, images, strict=True):
        picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        target[:] = np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC)).reshape(target.shape)
    return resized
