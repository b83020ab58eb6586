"""The speed and memory of loading folders of images, against torchvision's `ImageFolder` with a `DataLoader`.

Both sides end with all images in one uint8 array, the same pixels, and with their labels. This package also
computes the id of every image, a digest of its pixels, and reads each file's content before it trusts it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from evaluation.picture_folders import write_pictures
from evaluation.timing import Row, fastest_workers, in_turns, seconds_of
from gen_unlearn.data import DataConfig, load_folder, load_images
from gen_unlearn.repro import image_ids, numpy_generator

BATCH = 128
CASES = (
    ("3,000 JPEG files of 32 x 32", ".jpg", 3000, 32, 32),
    ("3,000 PNG files of 32 x 32", ".png", 3000, 32, 32),
    ("300 JPEG files of 256 x 256, to 64 x 64", ".jpg", 300, 256, 64),
)
"""What is loaded: its name, suffix, number, pixels on disk and pixels wanted."""

_PEAK = """
import re, sys
from pathlib import Path
from evaluation.decoding_speed import load, load_with_torchvision
folder = Path(sys.argv[1])
load(folder, 32) if sys.argv[2] == "gen_unlearn" else load_with_torchvision(folder, 32, 0)
sys.stdout.write(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))
"""


def decoding_rows(repeats: int) -> list[Row]:
    """Time loading of every case, and reading again in batches what does not fit in memory."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (work, suffix, count, stored, wanted) in enumerate(CASES):
            folder = write_pictures(Path(scratch) / str(number), suffix, count, stored)
            rows.append(_loading_row(work, folder, wanted, repeats))
        rows += [_lazy_row(Path(scratch) / "0", repeats), _memory_row(Path(scratch) / "0")]
    return rows


def load(folder: Path, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Load a folder as `gen-unlearn train` does: images ``(n, pixels, pixels, 3)`` and labels; ids too."""
    data = load_images(DataConfig(str(folder), image_size=pixels))
    return data.all_images(), data.labels


def load_with_torchvision(folder: Path, pixels: int, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Load the same with torchvision."""
    source = _image_folder(folder, pixels)
    images = np.empty((len(source), pixels, pixels, 3), dtype=np.uint8)
    labels, start = [], 0
    for batch, of_batch in DataLoader(source, batch_size=BATCH, num_workers=workers):
        images[start : start + len(batch)] = batch.permute(0, 2, 3, 1).numpy()
        labels.append(of_batch.numpy())
        start += len(batch)
    return images, np.concatenate(labels)


def _image_folder(folder: Path, pixels: int) -> ImageFolder:
    """Return images, uint8 ``(3, pixels, pixels)``, with labels."""
    resize = Resize(pixels, interpolation=InterpolationMode.BICUBIC)
    return ImageFolder(str(folder), Compose([resize, CenterCrop(pixels), PILToTensor()]))


def _loading_row(work: str, folder: Path, pixels: int, repeats: int) -> Row:
    """Compare the speed, after a look that the pixels are the same."""
    for found, expected in zip(load(folder, pixels), load_with_torchvision(folder, pixels, 0), strict=True):
        np.testing.assert_array_equal(found, expected)
    best = fastest_workers(lambda workers: load_with_torchvision(folder, pixels, workers))
    pairs = in_turns(
        lambda: load_with_torchvision(folder, pixels, best), lambda: load(folder, pixels), repeats
    )
    images, _ = load(folder, pixels)
    share = seconds_of(lambda: image_ids(images)) / float(np.median([own for _, own in pairs]))
    reason = f"one process against {max(1, best)}; ids of the images are {share:.0%}"
    against = f"ImageFolder, DataLoader, {best} workers"
    return Row.of_ratio(f"speed of loading {work}", against, pairs, 1.0, "higher", reason)


def _lazy_row(folder: Path, repeats: int) -> Row:
    """Compare one pass in random batches over images that are not kept in memory."""
    data = load_folder(folder, size=(32, 32), channels=3, memory_limit=0)
    order = numpy_generator("decoding").permutation(len(data))

    def read() -> None:
        for start in range(0, len(order), BATCH):
            data.images[order[start : start + BATCH]]

    def read_with(workers: int) -> None:
        for _ in DataLoader(_image_folder(folder, 32), BATCH, shuffle=True, num_workers=workers):
            pass

    best = fastest_workers(read_with)
    pairs = in_turns(lambda: read_with(best), read, repeats)
    work = "speed of a pass over images on disk, each checked by its id"
    return Row.of_ratio(work, f"ImageFolder, DataLoader, {best} workers", pairs, 1.0, "higher")


def _memory_row(folder: Path) -> Row:
    """Compare the peak memory of fresh processes that load, with the same imports and without workers."""
    root, peaks = Path(__file__).parents[1], []
    for who in ("gen_unlearn", "torchvision"):
        words = [sys.executable, "-c", _PEAK, str(folder), who]
        peaks.append(int(subprocess.run(words, cwd=root, check=True, capture_output=True, text=True).stdout))
    against = "ImageFolder, DataLoader, 0 workers"
    return Row.of_ratio("peak memory of loading 3,000 JPEG files of 32 x 32", against, [(peaks[0], peaks[1])])
