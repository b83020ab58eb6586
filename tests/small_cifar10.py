"""Two small Parquet files in the schema of the hub's CIFAR-10, of JPEG images that are drawn on the spot."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class SmallCifar10(NamedTuple):
    """Training and held-out images."""

    train: Path
    test: Path

    @property
    def overrides(self) -> tuple[str, ...]:
        """What points a recipe to them."""
        return f"data.source={self.train}", f"data.test_source={self.test}"


def write_small_cifar10(folder: Path, train: int = 200, test: int = 60) -> SmallCifar10:
    """Write images of 32 x 32 pixels, as many of each class: its colour, brighter to one side, and noise."""
    found = SmallCifar10(folder / "train.parquet", folder / "test.parquet")
    draws = np.random.default_rng(0)
    for path, count in ((found.train, train), (found.test, test)):
        labels = [row % len(NAMES) for row in range(count)]
        rows = [{"bytes": _jpeg(label, draws), "path": None} for label in labels]
        features = datasets.Features(
            {"img": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
        )
        table = datasets.Dataset.from_dict({"img": rows, "label": labels}, features=features)
        pq.write_table(table.data.table, path)
    return found


def _jpeg(label: int, draws: np.random.Generator) -> bytes:
    colour = np.random.default_rng(label).uniform(60, 200, 3)
    ramp = np.linspace(-40, 40, 32)[:, None, None] * (1 if label % 2 else -1)
    pixels = (colour + ramp + draws.normal(0, 12, (32, 32, 3))).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()
