"""Small problems for adapters: handwritten digits as records, and random ones."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from gen_unlearn.adapters.purity_checks import in_order
from gen_unlearn.adapters.records import STEPS, Records
from gen_unlearn.repro import image_ids


class Problem(NamedTuple):
    """Deletable records, public ones, and ones that no model has seen."""

    records: Records
    public: Records
    unseen: Records


@cache
def digits() -> Problem:
    """Standardised pixels: 1000 deletable images, 300 public and 497 unseen ones."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    public, records, unseen = np.split(order, [300, 1300])
    mean, deviation = images[public].mean(axis=0), images[public].std(axis=0) + 0.16
    codes = np.rint(STEPS * (images - mean) / deviation).astype(np.int16)
    ids = image_ids(images.astype(np.uint8).reshape(-1, 8, 8, 1))
    return Problem(
        *(in_order(Records(codes[r], labels[r].astype(np.int64), ids[r])) for r in (records, public, unseen))
    )


def random_records(count: int, seed: int, features: int = 6, classes: int = 3) -> Records:
    """Records of several clusters."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, count)
    centres = np.random.default_rng(99).normal(0, 1.5, (classes, features))
    values = centres[labels] + draw.standard_normal((count, features))
    ids = draw.integers(0, 256, (count, 16)).astype(np.uint8)
    return in_order(Records(np.rint(STEPS * values).astype(np.int16), labels, ids))
