"""What an unlearning method sees: the images to forget, those to retain, and perhaps held-out ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from gen_unlearn.indexed_images import IndexedImages, unique_ids
from gen_unlearn.repro import digest_json

Part = Literal["forget", "retain", "heldout"]


@dataclass(frozen=True)
class UnlearnData:
    """The images of one unlearning request. There is no test set, ever.

    Attributes:
        forget: the images to forget, with the labels that the original was trained with.
        retain: all other training images.
        heldout: images that no model was trained on, for methods that choose a checkpoint by them.

    A part that a method does not declare to need is empty.

    Raises:
        ValueError: two parts share an image, or they have different classes.
    """

    forget: IndexedImages
    retain: IndexedImages
    heldout: IndexedImages

    def __post_init__(self) -> None:
        parts = {"forget": self.forget, "retain": self.retain, "heldout": self.heldout}
        for name, part in parts.items():
            if part.class_names != self.forget.class_names:
                raise ValueError(
                    f"expected the classes {self.forget.class_names}, {name} has {part.class_names}"
                )
        for first, second in (("forget", "retain"), ("forget", "heldout"), ("retain", "heldout")):
            shared = int(parts[first].holds(parts[second].ids).sum())
            if shared:
                raise ValueError(
                    f"expected {first} and {second} images to be disjoint, got {shared} of {second} in both; "
                    "byte-identical images belong to one part"
                )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.forget.class_names)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ids and labels of all parts."""
        return digest_json([self.forget.digest, self.retain.digest, self.heldout.digest])

    @cached_property
    def forgotten_ids(self) -> np.ndarray:
        """Distinct ids of the images to forget, ascending, uint8 ``(n, 16)``."""
        return unique_ids(self.forget.ids)

    @cached_property
    def forgotten_classes(self) -> tuple[int, ...]:
        """Classes of the images to forget, ascending."""
        return tuple(np.unique(self.forget.labels).tolist())

    def only(self, needs: Iterable[Part]) -> UnlearnData:
        """Return the parts that a method declares to need; what it does not need is empty."""
        needed = set(needs)

        def part(name: Part, images: IndexedImages) -> IndexedImages:
            return images if name in needed else images.select(np.empty(0, dtype=np.int64))

        return UnlearnData(
            part("forget", self.forget), part("retain", self.retain), part("heldout", self.heldout)
        )
