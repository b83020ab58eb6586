"""Write files and folders so that a crash leaves the old state or the new one."""

from __future__ import annotations

import os
from pathlib import Path

UNDATED = 315532800
"""Modification time of files that must not tell when they were written: 1980, the first year of zip files."""


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file under a temporary name, flush it to disk and rename it into place."""
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def write_flushed(path: Path, content: bytes) -> None:
    """Write a file where nobody looks yet, and flush it to disk.

    Its modification time is a constant: the newer files of a store would tell what a deletion touched, and
    copies of the store, by tar or rsync, would tell everybody.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.utime(path, (UNDATED, UNDATED))
        os.fsync(file.fileno())


def write_undated(path: Path, content: bytes) -> None:
    """Replace a file whole, like `write_text`, by one with the modification time of `write_flushed`."""
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        write_flushed(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read where nobody looks yet, and flush it to disk."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_tree(folder: Path) -> None:
    """Flush every file and folder below a folder, itself and its entry in its parent to disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            flush_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    flush_folder(folder)
    flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk, so that a rename in it survives a power failure."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
