"""Records: encoded training images, as integers, and the few adapters that each is routed to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gen_unlearn.repro import ID_BYTES, digest_arrays
from gen_unlearn.shards import Rows

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 256
"""Steps of the codes per standard deviation of a feature among public images: 128 deviations fit."""

LARGEST_CODE = 32767
"""Codes are cut off at this magnitude."""


@dataclass(frozen=True, eq=False)
class Records:
    """What adapters are fit on, sorted by id and then by label.

    Attributes:
        codes: standardised encodings times 256, int16 ``(n, features)``. They are the truth: an image is
            encoded once, and never again to route or to subtract it.
        labels: class indices, int64 ``(n,)``.
        ids: sample ids, uint8 ``(n, 16)``.
        pixels: the images, uint8 ``(n, height, width, channels)``, where adapters are fit on them.
    """

    codes: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    pixels: np.ndarray | None = None

    def __post_init__(self) -> None:
        got = [f"{array.dtype}{list(array.shape)}" for array in (self.codes, self.labels, self.ids)]
        count = len(self.ids)
        fit = [f"int16[{count}, {self.codes.shape[-1]}]", f"int64[{count}]", f"uint8[{count}, {ID_BYTES}]"]
        if got != fit:
            raise ValueError(
                f"expected codes int16[n, features], labels int64[n] and ids uint8[n, {ID_BYTES}], got "
                f"{', '.join(got)}; encode images with gen_unlearn.adapters.records.quantise"
            )
        if self.pixels is not None and (self.pixels.dtype != np.uint8 or len(self.pixels) != count):
            raise ValueError(
                f"expected the pixels of {count} images as uint8, got {self.pixels.dtype} {self.pixels.shape}"
            )

    @classmethod
    def of_rows(cls, rows: Rows, features: int) -> tuple[Records, np.ndarray]:
        """Return stored exemplars as records, and their routes, int16 ``(n, neighbours)``.

        Stored codes are the features of a record, and behind them its routes. Rows that were read without
        pixels give records without.
        """
        assert rows.codes is not None, "the store of an adapter ensemble has codes"
        pixels = rows.pixels if rows.pixels.ndim == 4 else None
        return cls(rows.codes[:, :features], rows.labels, rows.ids, pixels), rows.codes[:, features:]

    @property
    def digest(self) -> str:
        """SHA-256 of all columns; the ids stand for the pixels."""
        return digest_arrays(self.codes, self.labels, self.ids)

    def select(self, rows: np.ndarray | slice) -> Records:
        """Return some records, given by indices, a mask or a slice."""
        pixels = None if self.pixels is None else self.pixels[rows]
        return Records(self.codes[rows], self.labels[rows], self.ids[rows], pixels)

    @property
    def columns(self) -> list[np.ndarray]:
        """The arrays, not copied: codes, labels, ids and, if there are any, pixels."""
        return [self.codes, self.labels, self.ids, *([] if self.pixels is None else [self.pixels])]

    def __len__(self) -> int:
        return len(self.ids)


def quantise(encodings: Tensor, mean: Tensor, deviation: Tensor) -> tuple[np.ndarray, int]:
    """Standardise encodings and round them to codes, in float64 on the CPU.

    Args:
        encodings: float ``(n, features)``.
        mean: of public images, ``(features,)``.
        deviation: of public images, ``(features,)``, above 0.

    Returns:
        int16 codes ``(n, features)`` and how many of them are cut off at 128 deviations.

    Raises:
        ValueError: an encoding is not a finite number.
    """
    values, centre, scale = (part.detach().double().cpu().numpy() for part in (encodings, mean, deviation))
    steps = np.rint(STEPS * (values - centre) / scale)
    if not np.isfinite(steps).all():
        raise ValueError("expected finite encodings, got nan or infinity; check the weights of the encoder")
    cut_off = int((np.abs(steps) > LARGEST_CODE).sum())
    return steps.clip(-LARGEST_CODE, LARGEST_CODE).astype(np.int16), cut_off
