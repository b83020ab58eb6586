"""Published settings, whose numbers belong to losses that are sums or means over pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

MethodT = TypeVar("MethodT")


@dataclass(frozen=True)
class Preset(Generic[MethodT]):
    """Published settings in the convention of this package: every loss is a mean over pixels.

    Attributes:
        method: with the settings converted.
        source: where they were published.
        published_reduction: over the pixels of an image, as published.
        pixels: numbers of an image, channels included.
    """

    method: MethodT
    source: str
    published_reduction: Literal["sum", "mean"]
    pixels: int
