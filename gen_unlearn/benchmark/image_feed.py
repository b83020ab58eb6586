"""The batches that a classifier of the benchmark is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gen_unlearn.data import IndexedImages
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import keyed_order, torch_generator

Augment = Literal["none", "crop-flip"]
"""``"crop-flip"`` is `crop_and_flip`; ``"none"`` leaves images as they are."""

_BLACK = -1.0

_SMALL = 2**25
"""Bytes of images that are converted once and kept as floats, four times as large."""


class ImageFeed:
    """Serve the rows of a data set as images in [-1, 1] and labels on one device.

    Small data is converted once; other data whenever it is asked for.

    Args:
        data: the images.
        device: where they are needed.
    """

    def __init__(self, data: IndexedImages, device: torch.device) -> None:
        self._ids, self._device = data.ids, device
        self._images = data.images
        self._labels = torch.from_numpy(data.labels).to(device)
        small = isinstance(data.images, np.ndarray) and data.images.size <= _SMALL
        self._converted = to_model_input(data.all_images()).to(device) if small else None

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the images ``(rows, channels, height, width)`` and the labels ``(rows,)``."""
        where = torch.from_numpy(rows).to(self._device)
        if self._converted is not None:
            return self._converted[where], self._labels[where]
        return to_model_input(self._images[rows]).to(self._device), self._labels[where]

    def epoch(
        self, batch_size: int, seed: int, epoch: int, augment: Augment = "none", padding: int = 4
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images and labels of each step of an epoch; the last batch may be smaller.

        Args:
            batch_size: images per step.
            seed: of order and augmentation.
            epoch: counted from 0.
            augment: see `Augment`.
            padding: see `crop_and_flip`.
        """
        order = epoch_order(self._ids, seed, epoch)
        generator = torch_generator(seed, "augmentation", epoch)
        for start in range(0, len(order), batch_size):
            images, labels = self.batch(order[start : start + batch_size])
            if augment == "crop-flip":
                images = crop_and_flip(images, padding, generator)
            yield images, labels


def epoch_order(ids: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the images in an epoch: a hash of seed, epoch and id, int64 ``(n,)``."""
    return keyed_order(ids, seed, "training order", epoch)


def crop_and_flip(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad images with black, crop each at random to its size, and mirror each with probability 1/2.

    Args:
        images: float ``(n, channels, height, width)`` in [-1, 1].
        padding: black pixels on each side.
        generator: on the CPU; three numbers per image are drawn.
    """
    count, _, height, width = images.shape
    corners = torch.randint(2 * padding + 1, (count, 2), generator=generator).to(images.device)
    mirrored = (torch.rand(count, generator=generator) < 0.5).to(images.device)
    rows = corners[:, :1] + torch.arange(height, device=images.device)
    columns = corners[:, 1:] + torch.arange(width, device=images.device)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(images, (padding,) * 4, value=_BLACK).permute(0, 2, 3, 1)
    which = torch.arange(count, device=images.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
