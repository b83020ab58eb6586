"""Folders of pictures to time reading with: CIFAR-10 (JPEG) where it is at hand, else smooth noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from gen_unlearn.decoding import decode_image
from gen_unlearn.repro import numpy_generator

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10-jpeg-test.parquet"
CLASSES = 10


def write_pictures(folder: Path, suffix: str, count: int, pixels: int = 32, first: int = 0) -> Path:
    """Write pictures into ten class folders, enlarged unless they have that size, and return the folder.

    Args:
        folder: made here.
        suffix: ``.png`` or ``.jpg``.
        count: number of pictures.
        pixels: height and width.
        first: number of the first picture; different numbers are different pictures.
    """
    for number, picture in enumerate(_pictures(first, count), first):
        path = folder / f"class {number % CLASSES}" / f"{number:05}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if picture.size != (pixels, pixels):
            picture = picture.resize((pixels, pixels), Image.Resampling.BICUBIC)
        picture.save(path, quality=92)
    return folder


def _pictures(first: int, count: int) -> Iterator[Image.Image]:
    """Yield pictures of 32 x 32 pixels in colour."""
    if CIFAR.exists():
        for encoded in pq.read_table(CIFAR, columns=["img"]).column("img").slice(first, count).to_pylist():
            yield Image.fromarray(decode_image(encoded["bytes"], size=(32, 32), channels=3))
        return
    for number in range(first, first + count):
        coarse = numpy_generator("pictures", number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        yield Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC)
