"""Small ensembles of adapters that tests share: random codes, and the pixels of handwritten digits."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from gen_unlearn.adapters.family import AdapterFamily, FitJob, HeadShape
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import Records, quantise
from gen_unlearn.adapters.routing import public_keys
from gen_unlearn.data import load_digits_images
from gen_unlearn.repro import id_keys

PUBLIC = 200


def random_records(count: int, features: int = 12, classes: int = 4, seed: int = 0) -> Records:
    """Make records of random codes."""
    draw = np.random.default_rng(seed)
    codes = np.rint(256 * draw.standard_normal((count, features))).astype(np.int16)
    ids = draw.integers(0, 256, (count, 16)).astype(np.uint8)
    return in_order(Records(codes, draw.integers(0, classes, count), ids))


def random_jobs(sizes: list[int], shape: HeadShape) -> list[FitJob]:
    """Make adapters with so many members each."""
    return [
        FitJob(7 + place, random_records(size, shape.features, shape.classes, seed=place))
        for place, size in enumerate(sizes)
    ]


def in_order(records: Records) -> Records:
    """Sort records by id, then by label."""
    return records.select(np.lexsort((records.labels, id_keys(records.ids))))


@cache
def digits() -> tuple[Records, np.ndarray, np.ndarray]:
    """Return records of the digits' pixels, and codes and ids of public digits, which are others."""
    images = load_digits_images()
    pixels = torch.from_numpy(images.images).flatten(1).double()
    public = pixels[:PUBLIC]
    deviation = public.std(dim=0).clamp(min=1)
    codes, _ = quantise(pixels, public.mean(dim=0), deviation)
    records = Records(codes[PUBLIC:], images.labels[PUBLIC:], images.ids[PUBLIC:])
    return in_order(records), codes[:PUBLIC], images.ids[:PUBLIC]


def digits_recipe(
    family: AdapterFamily, count: int = 12, neighbours: int = 2, seed: int = 0
) -> EnsembleRecipe:
    """Make the recipe of an ensemble for the digits."""
    _, codes, ids = digits()
    keys = public_keys(codes, ids, count, "public-samples", seed)
    return EnsembleRecipe(keys, family, neighbours, tuple("0123456789"), seed)
