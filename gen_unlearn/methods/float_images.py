"""Train on images that are not on the grid of uint8: adversarial examples and learned noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FloatImages:
    """Float images that stand in for the first uint8 images of a term.

    Attributes:
        inputs: on the CPU, float32 ``(n, channels, height, width)``, mostly in [-1, 1].
        order: int64 ``(first,)``: which of them stands in for each of the first images; the others stay.
    """

    inputs: Tensor
    order: np.ndarray

    @classmethod
    def one_each(cls, inputs: Tensor) -> FloatImages:
        """Let every float image stand in for one image, in their order."""
        return cls(inputs, np.arange(len(inputs)))

    def put(self, batch: Tensor, rows: np.ndarray) -> None:
        """Put them in the place of the images that they stand in for.

        Args:
            batch: float32 ``(batch, channels, height, width)`` on the CPU, changed in place.
            rows: of the term's images, int64 ``(batch,)``.
        """
        places = np.flatnonzero(rows < len(self.order))
        batch[torch.from_numpy(places)] = self.inputs[torch.from_numpy(self.order[rows[places]])]
