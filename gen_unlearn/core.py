"""The core: the images that the network's weights are fit on, and what that means for deletions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from gen_unlearn.data import IndexedImages, split_by_ids, stratified_split
from gen_unlearn.repro import digest_json

CoreMode = Literal["joint", "public"]


@dataclass(frozen=True)
class CoreConfig:
    """Which training images the weights may see.

    Attributes:
        mode: ``"joint"`` fits the weights on all training images, as the paper does. ``"public"`` fits them
            on a part that is declared non-deletable; the other images enter as exemplars only and can be
            deleted, bit for bit as if they had never been there.
        fraction: share of the images of each class that is the public core, above 0 and below 1.
        seed: seed of that choice.
        unseen_classes: names of classes that the core has no images of.
    """

    mode: CoreMode = "joint"
    fraction: float = 0.5
    seed: int = 0
    unseen_classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"expected core.fraction above 0 and below 1, got {self.fraction}")
        if self.unseen_classes and self.mode == "joint":
            raise ValueError("core.unseen_classes needs core.mode public: a joint core sees every class")


@dataclass(frozen=True)
class CoreSplit:
    """Training images by what may be done with them: `core` is what weights are fit on."""

    core: IndexedImages
    deletable: IndexedImages

    @property
    def digest(self) -> str:
        """Identify the images by what is done with them."""
        if self.core is self.deletable:
            return self.core.digest
        return digest_json([self.core.digest, self.deletable.digest])


def split_core(train: IndexedImages, config: CoreConfig, core_ids: np.ndarray | None = None) -> CoreSplit:
    """Divide training images into the core and the deletable ones; a joint core is both.

    Args:
        train: the training images.
        config: what to choose.
        core_ids: the ids of a public core that was chosen before, uint8 ``(n, 16)``.

    Raises:
        ValueError: an unseen class that does not exist.
    """
    if config.mode == "joint":
        return CoreSplit(train, train)
    if core_ids is None:
        unseen = [train.class_index(name) for name in config.unseen_classes]
        seen = train.select(np.flatnonzero(~np.isin(train.labels, unseen)))
        core_ids = stratified_split(seen, 1 - config.fraction, config.seed).train.ids
    parts = split_by_ids(train, core_ids)
    return CoreSplit(core=parts.test, deletable=parts.train)
