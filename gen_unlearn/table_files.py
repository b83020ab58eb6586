"""Find Parquet and Arrow files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from gen_unlearn.decoding import image_files
from gen_unlearn.indexed_images import first_few

BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
"""By the end of a file's name, what `datasets` reads it with."""

_SPLIT_WORDS = {"train", "test", "validation", "val", "valid"}


def table_files(source: str | Path) -> list[Path]:
    """List the Parquet or Arrow files that a file name, a folder or a pattern stands for, sorted.

    Raises:
        ValueError: a file of another kind, a folder or pattern that mixes Parquet with Arrow or the files of
            several splits, or a folder that holds images too.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix not in BUILDERS:
        raise ValueError(f"expected a folder, or a file that ends in .parquet or .arrow, got {path}")
    found: Iterable[Path] = [path]
    if path.is_dir():
        named = ((folder, name) for folder, _, names in os.walk(path) for name in names)
        found = (
            Path(folder, name) for folder, name in named if name.endswith(tuple(BUILDERS)) and name[0] != "."
        )
    elif not path.exists() and re.search(r"[*?\[]", str(path)):
        found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    files = sorted(file for file in found if file.suffix in BUILDERS and file.is_file())
    splits = {word for file in files for word in re.split(r"[^a-z]+", file.stem) if word in _SPLIT_WORDS}
    if len(splits) > 1 or len({file.suffix for file in files}) > 1:
        raise ValueError(
            f"expected the Parquet or the Arrow files of one split in {str(source)!r}, got "
            f"{first_few([file.name for file in files])}; choose with a pattern, 'data/train-*.parquet'"
        )
    if files and path.is_dir() and image_files(path):
        raise ValueError(
            f"expected either tables or images in {path}, got both: "
            f"{first_few([file.name for file in files])} beside {image_files(path)[0].name}; "
            f"name the table files with a pattern, or move them away"
        )
    return files
