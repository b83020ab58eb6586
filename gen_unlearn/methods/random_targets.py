"""Random labels that depend on the image, the seed and the time alone: the same on 1 and 8 processes."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Literal

import numpy as np

from gen_unlearn.repro import keyed_words

Relabel = Literal["include_true", "exclude_true", "exclude_classes"]
"""Which labels an image may get: any, any but its own, or any but those of a forgotten class."""

Resample = Literal["step", "epoch", "never"]
"""When labels are drawn again."""


def random_targets(
    ids: np.ndarray,
    labels: np.ndarray,
    classes: int,
    mode: Relabel,
    *,
    seed: int,
    time: int,
    excluded: Collection[int] = (),
) -> np.ndarray:
    """Draw a label for every image, uniformly over those that the mode allows.

    Args:
        ids: content ids, uint8 ``(n, 16)``.
        labels: own labels, int64 ``(n,)``.
        classes: number of classes.
        mode: which labels are allowed.
        seed: of the draws.
        time: number of the step or of the epoch; other times give other labels.
        excluded: forgotten classes, for ``"exclude_classes"``.

    Returns:
        int64 ``(n,)``.

    Raises:
        ValueError: no label is allowed.
    """
    allowed = _without(classes, frozenset(excluded) if mode == "exclude_classes" else frozenset())
    choices = len(allowed) - (mode == "exclude_true")
    if choices < 1:
        raise ValueError(
            f"expected a label to choose from, got none of {classes} classes without {sorted(excluded)}"
        )
    drawn = (keyed_words(ids, "random targets", seed, time) % np.uint64(choices)).astype(np.int64)
    if mode == "exclude_true":
        return drawn + (drawn >= labels)
    return allowed[drawn]


@lru_cache(maxsize=16)
def _without(classes: int, excluded: frozenset[int]) -> np.ndarray:
    """Return the numbers of the classes that are not excluded, int64, rising."""
    return np.setdiff1d(np.arange(classes), list(excluded))
