"""Small ensembles of adapters that tests share: random codes, and the pixels of handwritten digits."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits

from gen_unlearn.adapters.family import AdapterFamily, FitJob, HeadShape
from gen_unlearn.adapters.purity_checks import in_order
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import STEPS, Records, quantise
from gen_unlearn.adapters.routing import public_keys
from gen_unlearn.data import load_digits_images
from gen_unlearn.repro import image_ids

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


def clustered_records(count: int, seed: int, features: int = 6, classes: int = 3) -> Records:
    """Make records of several clusters, one for each class."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, count)
    centres = np.random.default_rng(99).normal(0, 1.5, (classes, features))
    values = centres[labels] + draw.standard_normal((count, features))
    ids = draw.integers(0, 256, (count, 16)).astype(np.uint8)
    return in_order(Records(np.rint(STEPS * values).astype(np.int16), labels, ids))


class DigitsProblem(NamedTuple):
    """Deletable records, public ones, and ones that no model has seen."""

    records: Records
    public: Records
    unseen: Records


@cache
def digits_problem() -> DigitsProblem:
    """Return standardised pixels of the digits: 1000 deletable images, 300 public and 497 unseen ones."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    public, records, unseen = np.split(order, [300, 1300])
    mean, deviation = images[public].mean(axis=0), images[public].std(axis=0) + 0.16
    codes = np.rint(STEPS * (images - mean) / deviation).astype(np.int16)
    ids = image_ids(images.astype(np.uint8).reshape(-1, 8, 8, 1))
    return DigitsProblem(
        *(in_order(Records(codes[r], labels[r].astype(np.int64), ids[r])) for r in (records, public, unseen))
    )


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
