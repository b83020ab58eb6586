"""Read folders that list their files in ``SHA256SUMS``, while changes may replace one list by the next.

Files are never changed in place: a change writes new files, replaces the list, and removes the files that are
not listed any more. What one list names is one *generation*. A reader that finds a listed file gone was
overtaken by a change, and starts over.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from gen_unlearn.shards import SUMS, parse_sums, sha256

_MOST_ATTEMPTS = 100


class OvertakenError(ValueError):
    """Say that a file of a generation is gone, because a later one has replaced it or it was damaged."""


class Generation(Protocol):
    """A folder as it was listed when it was opened."""

    @property
    def path(self) -> Path:
        """The folder."""

    @property
    def sums(self) -> dict[str, str]:
        """SHA-256 of every file by name."""


G = TypeVar("G", bound=Generation)
T = TypeVar("T")


def listed_sums(path: Path, what: str) -> dict[str, str]:
    """Return what a folder lists; `what` it should be is for the error.

    Raises:
        ValueError: there is no such list.
    """
    try:
        text = (path / SUMS).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no {what}: {SUMS}: {error}") from error
    return parse_sums(text, str(path / SUMS))


def read_generation(open_present: Callable[[], G], work: Callable[[G], T]) -> T:
    """Do `work` on the present generation, again on the next one if a change overtakes it."""
    for _ in range(_MOST_ATTEMPTS):
        folder = open_present()
        try:
            return work(folder)
        except OvertakenError:
            if open_present().sums == folder.sums:
                raise
    raise ValueError(f"{folder.path} changed {_MOST_ATTEMPTS} times while it was read; try again later")


def checked_bytes(path: Path, expected: str) -> bytes:
    """Return a listed file's bytes.

    Raises:
        OvertakenError: it is gone.
        ValueError: its SHA-256 is not `expected`.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise OvertakenError(f"{path} is missing") from error
    if sha256(content) != expected:
        raise ValueError(f"{path} was changed: its SHA-256 is not the one listed")
    return content
