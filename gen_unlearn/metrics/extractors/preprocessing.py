"""How a stored image becomes the input of a network."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
"""Filters of Pillow; all but the first are antialiased when they shrink an image."""


class ImagePreprocessing(Protocol):
    """Map one image to the input of a network.

    Attributes:
        description: everything that decides the result, as text: it enters the extractor's digest.
        resize: what happens to the size of an image, for people; ``"none"`` if nothing does.
    """

    @property
    def description(self) -> str: ...

    @property
    def resize(self) -> str: ...

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Map a uint8 image ``(height, width, channels)`` to a float32 tensor ``(c, h, w)``."""
        ...


@dataclass(frozen=True)
class Preprocessing:
    """Resize with Pillow, round to uint8, divide by 255, subtract `mean` and divide by `std`.

    The same as torchvision's ``Resize(size, interpolation)``, ``ToTensor()`` and ``Normalize(mean, std)``
    on a Pillow image.

    Attributes:
        size: ``(height, width)``; or the length of the shorter side, with the aspect kept; or `None` to leave
            the image as it is.
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
        interpolation: filter of the resize.
    """

    size: tuple[int, int] | int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bilinear"

    @property
    def description(self) -> str:
        """The fields as JSON."""
        return json.dumps({"library": "pillow", **asdict(self)}, sort_keys=True)

    @property
    def resize(self) -> str:
        """The filter and the size."""
        if self.size is None:
            return "none"
        size = f"{self.size} (shorter side)" if isinstance(self.size, int) else "{} x {}".format(*self.size)
        return f"pillow {self.interpolation} to {size}, rounded to uint8"

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Map a uint8 image, grey or RGB, to a float32 tensor ``(3, h, w)``.

        Raises:
            ValueError: the image is not uint8, or has another number of channels.
        """
        picture = Image.fromarray(as_rgb(image))
        if self.size is not None:
            height, width = self._target(picture.height, picture.width)
            picture = picture.resize((width, height), Image.Resampling[self.interpolation.upper()])
        values = np.asarray(picture, dtype=np.float32) / 255
        values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image is resized to; the longer side is rounded down."""
        if isinstance(self.size, tuple):
            return self.size
        assert self.size is not None
        short = min(height, width)
        return self.size * height // short, self.size * width // short


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

IMAGENET_224 = Preprocessing((224, 224), IMAGENET_MEAN, IMAGENET_STD, "bicubic")
"""Of FD-DINOv2 (Stein et al. 2023), and a common choice for networks trained on ImageNet."""


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Return a uint8 image ``(height, width, 3)``, a grey one repeated to three channels.

    Raises:
        ValueError: the image is not uint8 of shape ``(height, width, 1)`` or ``(height, width, 3)``.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(
            f"expected a uint8 image of shape (height, width, 1) or (height, width, 3), got {image.dtype} of "
            f"shape {image.shape}; quantise it and convert it to grey or RGB first"
        )
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
