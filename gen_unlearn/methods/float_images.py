"""Train on images that are not on the grid of uint8: adversarial examples and learned noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gen_unlearn.methods.logits import Batch
from gen_unlearn.repro import numpy_generator
from gen_unlearn.training.classification_batches import Augmentation


@dataclass(frozen=True, eq=False)
class FloatImages:
    """Float images that stand in for those of a batch that have their ids and labels.

    The loop reads uint8 images. `placed` puts the float images in, inside of a loss.

    Attributes:
        ids: uint8 ``(n, 16)``.
        labels: int64 ``(n,)``; an id with two labels may stand for two images.
        inputs: on the CPU, float32 ``(n, channels, height, width)``, mostly in [-1, 1].
        augment: random changes of them, as the loop changed only what they stand in for.
        seed: of the changes.
    """

    ids: np.ndarray
    labels: np.ndarray
    inputs: Tensor
    augment: Augmentation = field(default_factory=Augmentation)
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.labels) == len(self.inputs):
            raise ValueError(
                f"expected as many ids and labels as images, got {len(self.ids)}, {len(self.labels)} "
                f"and {len(self.inputs)}"
            )

    def placed(self, batch: Batch) -> Batch:
        """Return the batch with the float images that its ids and labels name; others stay."""
        keys = _keys(batch.ids, batch.labels.cpu().numpy())
        rows = np.array([self._rows.get(key, -1) for key in keys], dtype=np.int64)
        places = np.flatnonzero(rows >= 0)
        if not len(places):
            return batch
        chosen = self.inputs[torch.from_numpy(rows[places])]
        if self.augment != Augmentation():
            chosen = self.augment(chosen, numpy_generator(self.seed, "float images", batch.epoch, batch.step))
        inputs = batch.inputs
        where = torch.from_numpy(places).to(inputs.device)
        return batch._replace(inputs=inputs.index_copy(0, where, chosen.to(inputs)))

    @cached_property
    def _rows(self) -> dict[tuple[bytes, int], int]:
        """The row of every id and label."""
        return {key: row for row, key in enumerate(_keys(self.ids, self.labels))}


def _keys(ids: np.ndarray, labels: np.ndarray) -> list[tuple[bytes, int]]:
    """Return what names an image: its id and its label."""
    own = np.ascontiguousarray(ids).view(f"V{ids.shape[1]}")[:, 0]
    return list(zip(own.tolist(), labels.tolist(), strict=True))
