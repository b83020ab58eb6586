"""Data sets by name, as `IndexedImages`, and their split into training and test data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from gen_unlearn.image_sources import load_digits_images, load_folder
from gen_unlearn.indexed_images import IndexedImages, unique_ids
from gen_unlearn.lazy_images import ImageArray, LazyImages
from gen_unlearn.repro import id_keys, keyed_order
from gen_unlearn.table_files import table_files

__all__ = [
    "DataConfig",
    "ImageArray",
    "IndexedImages",
    "LazyImages",
    "Split",
    "load_digits_images",
    "load_folder",
    "load_images",
    "load_split",
    "split_by_ids",
    "stratified_split",
    "with_classes",
]


@dataclass(frozen=True)
class DataConfig:
    """Say which images to use, how to convert them, and what to hold out.

    Attributes:
        source: "digits" (scikit-learn's handwritten digits), a folder of images, a Parquet or Arrow file, a
            folder or pattern of such files, or the name of a hub data set in the local cache.
        image_size: height and width in pixels; None, for the digits only, keeps their 8.
        channels: 1 (grey) or 3 (RGB); None means 1 for the digits and 3 for everything else.
        test_fraction: share of the distinct images of each class to hold out, above 0 and below 1.
        split_seed: seed of that choice.
        on_error: "raise" at the first image that cannot be decoded, or "skip" it.
        test_source: a separate held-out source, written like `source`; replaces the split.
        image_column: column of images in a table; None finds it.
        label_column: column of labels in a table; None finds it.
        train_split: the split to read of a hub data set named by `source`.
        test_split: the split to read of a hub data set named by `test_source`.
    """

    source: str
    image_size: int | None = None
    channels: int | None = None
    test_fraction: float = 0.2
    split_seed: int = 0
    on_error: Literal["raise", "skip"] = "raise"
    test_source: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    train_split: str = "train"
    test_split: str = "test"

    def __post_init__(self) -> None:
        for source in (self.source, self.test_source):
            if self.image_size is None and source not in ("digits", None):
                raise ValueError(
                    f"expected image_size for {source!r}, got None; set it in pixels, such as 32"
                )
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"expected image_size of at least 1 pixel, got {self.image_size}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"expected channels to be 1 (grey) or 3 (RGB), got {self.channels}")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"expected test_fraction above 0 and below 1, got {self.test_fraction}")


@dataclass(frozen=True)
class Split:
    """Training data and held-out test data with the same classes."""

    train: IndexedImages
    test: IndexedImages


def load_images(config: DataConfig) -> IndexedImages:
    """Load all images of ``config.source``.

    Raises:
        ImageDecodeError: an image that cannot be decoded, unless ``config.on_error`` is "skip".
        ValueError: a source that does not exist, is not cached, or is not what it should be.
    """
    channels = config.channels or (1 if config.source == "digits" else 3)
    if config.source == "digits":
        return load_digits_images(size=(config.image_size or 8,) * 2, channels=channels)
    assert config.image_size is not None, "checked by DataConfig"
    size = (config.image_size, config.image_size)
    path = Path(config.source).expanduser()
    if path.is_dir() and not table_files(path):
        return load_folder(path, size=size, channels=channels, on_error=config.on_error)
    from gen_unlearn.image_tables import load_table

    return load_table(
        config.source,
        size=size,
        channels=channels,
        split=config.train_split,
        image_column=config.image_column,
        label_column=config.label_column,
        on_error=config.on_error,
    )


def load_split(config: DataConfig) -> Split:
    """Load training and test data: two sources, or one that is split by `stratified_split`.

    Raises:
        ValueError: as `load_images`; or a test source with a class that the training source lacks.
    """
    train = load_images(config)
    if config.test_source is None:
        return stratified_split(train, config.test_fraction, config.split_seed)
    channels = train.image_shape[2]
    test_config = replace(
        config, source=config.test_source, test_source=None, channels=channels, train_split=config.test_split
    )
    return Split(train, with_classes(load_images(test_config), train.class_names))


def split_by_ids(data: IndexedImages, held_out: np.ndarray) -> Split:
    """Hold out the images with the given ids, uint8 ``(n, 16)``; ids not in the data are no error."""
    test_rows = np.isin(id_keys(data.ids), id_keys(held_out))
    return Split(data.select(~test_rows), data.select(test_rows))


def stratified_split(data: IndexedImages, test_fraction: float, seed: int) -> Split:
    """Hold out ``round(test_fraction * n)`` of the `n` distinct images of each class.

    Which ones is decided by a hash of the seed and the id: the order of the rows does not matter, and
    byte-identical images land on the same side. A class of two or more keeps at least one image on each
    side; a class of one goes to training. An image that appears under several labels counts for the
    smallest of them.

    Raises:
        ValueError: no class has two distinct images, or the fraction is not between 0 and 1.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"expected test_fraction above 0 and below 1, got {test_fraction}")
    ids = unique_ids(data.ids)
    image_of_row = np.searchsorted(id_keys(ids), id_keys(data.ids))
    labels = np.full(len(ids), len(data.class_names))
    np.minimum.at(labels, image_of_row, data.labels)

    shuffled = keyed_order(ids, seed, "test split")
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]  # By class, and by hash within a class.
    counts = np.bincount(labels, minlength=len(data.class_names))
    held_out = np.where(counts < 2, 0, np.clip(np.rint(test_fraction * counts), 1, counts - 1))
    rank_in_class = np.arange(len(ids)) - (np.cumsum(counts) - counts)[labels[order]]
    in_test = np.zeros(len(ids), dtype=bool)
    in_test[order] = rank_in_class < held_out[labels[order]]
    if not in_test.any():
        raise ValueError(
            f"expected a class with two distinct images to split, got {len(ids)} distinct images in "
            f"{np.count_nonzero(counts)} classes; add images or set test_source"
        )
    test_rows = in_test[image_of_row]
    return Split(data.select(~test_rows), data.select(test_rows))


def with_classes(data: IndexedImages, class_names: tuple[str, ...]) -> IndexedImages:
    """Renumber the labels of `data` to index `class_names`."""
    unknown = sorted(set(data.class_names) - set(class_names))
    if unknown:
        raise ValueError(
            f"expected a source with no classes but {list(class_names)}, "
            f"got {unknown} too; rename or remove them"
        )
    renumbered = np.array([class_names.index(name) for name in data.class_names], dtype=np.int64)
    return replace(data, labels=renumbered[data.labels], class_names=class_names)
