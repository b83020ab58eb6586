"""Read images from Parquet and Arrow files, and from hub data sets in the local cache, with `datasets`."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.cache.cache import Cache

from gen_unlearn.decoding import ImageDecodeError
from gen_unlearn.image_sources import ALL_IMAGES, MEMORY_LIMIT, OnError, index_encoded
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.table_files import BUILDERS, table_files

_LABEL_NAMES = ("label", "labels", "class", "target")


def load_table(
    source: str | Path,
    *,
    size: tuple[int, int],
    channels: int,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    on_error: OnError = "raise",
    memory_limit: int = MEMORY_LIMIT,
) -> IndexedImages:
    """Load images from Parquet or Arrow files, or from a hub data set that is in the local cache.

    Class names come from the label column's ClassLabel feature; otherwise they are the distinct integers or
    strings, sorted.

    Args:
        source: a file, a folder, a pattern ("data/train-*.parquet"), or the name of a hub data set.
        size, channels, on_error, memory_limit: as in `load_folder`.
        split: which split of a hub data set; local files are read whole.
        image_column: column of encoded images; None takes the only one.
        label_column: column of labels; None takes the only ClassLabel, else a column called "label",
            "labels", "class" or "target", else puts every image in one class, "all".

    Raises:
        ImageDecodeError: an image that cannot be decoded.
        ValueError: unreadable or mixed files, a data set that is not cached, or a column that is missing,
            ambiguous or of the wrong type.
    """
    table, names = _read_table(source, split)
    column = _image_column(table, image_column)
    labels, class_names = _read_labels(table, label_column or _find_label_column(table))
    return index_encoded(
        column,
        labels=labels,
        class_names=class_names,
        names=names,
        size=size,
        channels=channels,
        on_error=on_error,
        memory_limit=memory_limit,
    )


def encoded_images(source: str | Path) -> EncodedColumn:
    """Open the images of Parquet or Arrow files, or of a cached hub data set, without decoding them.

    Raises:
        ValueError: as `load_table`.
    """
    table, _ = _read_table(source, "train")
    return _image_column(table, None)


@dataclass(frozen=True)
class EncodedColumn:
    """A column of encoded images, memory-mapped: bytes, the path of a file, or a struct of both."""

    values: pa.ChunkedArray

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int, /) -> Path | bytes:
        """Return the bytes of one image, or the path of the local file that holds it."""
        value = self.values[row].as_py()
        if isinstance(value, dict):
            value = value["path"] if value["bytes"] is None else value["bytes"]
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return Path(value)
        raise ImageDecodeError(f"row {row}", "it is missing (null)")


def _read_table(source: str | Path, split: str) -> tuple[datasets.Dataset, list[str]]:
    """Open a source as one table, and name its rows."""
    files = table_files(source)
    table, names = _read_files(files) if files else _read_cached(str(source), split)
    if not names:
        raise ValueError(f"expected images in {str(source)!r}, got an empty table")
    return table, names


def _image_column(table: datasets.Dataset, name: str | None) -> EncodedColumn:
    column = name or _find_image_column(table)
    _require_column(table, column)
    return EncodedColumn(table.data.column(column))


def _read_files(files: list[Path]) -> tuple[datasets.Dataset, list[str]]:
    """Open local files as one table, and name its rows "file.parquet#12"."""
    tables, names = [], []
    for file in files:
        try:
            pattern = glob.escape(str(file))  # `datasets` takes patterns; the name may hold their symbols.
            table = datasets.load_dataset(BUILDERS[file.suffix], data_files=pattern, split="train")
        except (DatasetGenerationError, pa.ArrowException, ValueError) as error:
            cause = error.__cause__ or error
            raise ValueError(
                f"expected a {file.suffix[1:]} file, got {file}, which cannot be read "
                f"({' '.join(str(cause).split())}); check that it is complete"
            ) from error
        tables.append(table)
        names += [f"{file.name}#{row}" for row in range(len(table))]
    return datasets.concatenate_datasets(tables), names


def _read_cached(name: str, split: str) -> tuple[datasets.Dataset, list[str]]:
    """Open a hub data set from the local cache of `datasets`; never download."""
    try:
        builder = Cache(dataset_name=name.rpartition("/")[2], repo_id=name, version="auto", hash="auto")
    except ValueError as error:
        raise ValueError(
            f"expected an existing file or folder, or a hub data set in the local cache, got {name!r} "
            f"({' '.join(str(error).split())}); nothing is downloaded implicitly: check the path, or run "
            f"datasets.load_dataset({name!r}) once"
        ) from error
    table = builder.as_dataset(split=split)
    return table, [f"{name}#{row}" for row in range(len(table))]


def _require_column(table: datasets.Dataset, column: str) -> None:
    if column not in table.column_names:
        raise ValueError(f"expected one of the columns {table.column_names}, got {column!r}")


def _holds_images(feature: object) -> bool:
    if isinstance(feature, dict):
        return {"bytes", "path"} <= feature.keys()
    encoded = datasets.Value("binary"), datasets.Value("large_binary")
    return isinstance(feature, datasets.Image) or feature in encoded


def _find_image_column(table: datasets.Dataset) -> str:
    found = [name for name, feature in table.features.items() if _holds_images(feature)]
    if len(found) != 1:
        raise ValueError(
            f"expected one column of images, got {found or 'none'} among {table.column_names}; "
            f"set image_column"
        )
    return found[0]


def _find_label_column(table: datasets.Dataset) -> str | None:
    found = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    found = found or [name for name in _LABEL_NAMES if name in table.column_names]
    if len(found) > 1:
        raise ValueError(f"expected one column of labels, got {found}; set label_column")
    return found[0] if found else None


def _read_labels(table: datasets.Dataset, column: str | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return int64 labels and the class names they index."""
    if column is None:
        return np.zeros(len(table), dtype=np.int64), (ALL_IMAGES,)
    _require_column(table, column)
    values, feature = table.data.column(column), table.features[column]
    if values.null_count:
        raise ValueError(f"expected a label in every row, got {values.null_count} nulls in {column!r}")
    if isinstance(feature, datasets.ClassLabel):
        return np.array(values.to_pylist(), dtype=np.int64), tuple(feature.names)
    kinds = pa.types.is_integer, pa.types.is_string, pa.types.is_large_string
    if not any(is_kind(values.type) for is_kind in kinds):
        raise ValueError(f"expected integers or strings as labels, got {values.type} in column {column!r}")
    classes, labels = np.unique(values.to_pylist(), return_inverse=True)
    return labels.astype(np.int64), tuple(str(name) for name in classes.tolist())
