"""Which other members of its adapter an image is denoised beside in training."""

from __future__ import annotations

import numpy as np

from gen_unlearn.adapters.records import Records
from gen_unlearn.repro import keyed_order

NOBODY = np.empty(0, dtype=np.int64)
"""Of an image that is shown alone."""


def companions(members: Records, row: int, count: int, *key: int | str) -> np.ndarray:
    """Choose up to `count` members of the class of one, as int64 indices; never the image itself.

    The choice is a function of the key and of the ids of the class: without one of them, the others stay.

    Args:
        members: of the adapter. An image that is there twice, with two classes, is no companion of itself.
        row: the one.
        count: greatest number.
        key: what the choice depends on besides.
    """
    own = members.ids[row]
    others = np.flatnonzero((members.labels == members.labels[row]) & (members.ids != own).any(axis=1))
    return others[keyed_order(members.ids[others], *key, own.tobytes())[:count]]
