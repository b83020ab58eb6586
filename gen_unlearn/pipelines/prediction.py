"""How a trained classifier predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Vote = Literal["prototypes", "exemplars", "nearest-neighbours"]


@dataclass(frozen=True)
class PredictionConfig:
    """Who votes when a trained semi-parametric classifier predicts, and how many images are taken at a time.

    Attributes:
        vote: ``"prototypes"``, the mean key of each class (SPM-C); ``"exemplars"``, the nearest exemplars
            with their attention weights (SPM-R); or ``"nearest-neighbours"``, the exemplars whose keys lie
            nearest to the image's own key, one vote each: the comparison without a trained fusion.
        neighbours: exemplars that vote for each image.
        batch_size: images that are classified at a time.
    """

    vote: Vote = "prototypes"
    neighbours: int = 32
    batch_size: int = 256

    def __post_init__(self) -> None:
        if min(self.neighbours, self.batch_size) < 1:
            raise ValueError(
                f"expected neighbours and batch_size of at least 1, got {self.neighbours} and "
                f"{self.batch_size}"
            )
