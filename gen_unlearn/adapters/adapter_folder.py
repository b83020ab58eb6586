"""The adapters of an ensemble on disk: one file for each adapter that has members, named by what it holds::

    SHA256SUMS                                  what belongs to it; `sha256sum -c SHA256SUMS` checks it
    00017.83.<digest>.safetensors               number of the adapter, members, digest of its arrays
    00042.79.waiting-<digest>.safetensors       an adapter that waits to be rebuilt: its sums, without weights
    00042.79.waiting.safetensors                the same of a family that keeps no sums: nothing is in it

The list is the whole state, a function of recipe and records. What waits has no weights that could answer, so
whoever opens the folder after a crash finds the same adapters masked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from gen_unlearn.adapters.family import AdapterState, digest_adapter, has_weights
from gen_unlearn.atomic import flush_folder, write_flushed, write_undated
from gen_unlearn.generations import OvertakenError, checked_bytes, listed_sums, read_generation
from gen_unlearn.indexed_images import first_few
from gen_unlearn.shards import SUMS, sha256, sums_text

T = TypeVar("T")

_DIGITS = 32
_WAITING = "waiting"
_SUFFIX = "safetensors"
_FILES_AT_ONCE = 4


class AdapterFile(NamedTuple):
    """The file of an adapter, as its name tells it.

    Attributes:
        adapter: its number.
        members: records that it was fit on, or will be; at least one.
        waiting: whether it waits to be rebuilt.
        digest: 32 hexadecimal digits for its arrays; empty if it waits and keeps none.
    """

    adapter: int
    members: int
    waiting: bool
    digest: str

    @property
    def name(self) -> str:
        """The file's name."""
        parts = ([_WAITING] if self.waiting else []) + ([self.digest] if self.digest else [])
        return f"{self.adapter:05d}.{self.members}.{'-'.join(parts)}.{_SUFFIX}"

    @classmethod
    def from_name(cls, name: str) -> AdapterFile:
        """Read a file's name; raise a ValueError if it names no adapter."""
        parts = name.split(".")
        if len(parts) == 4 and parts[0].isdecimal() and parts[1].isdecimal():
            waiting = parts[2].startswith(_WAITING)
            digest = parts[2].removeprefix(_WAITING).removeprefix("-") if waiting else parts[2]
            file = cls(int(parts[0]), int(parts[1]), waiting, digest)
            fits = len(digest) == _DIGITS or (waiting and not digest)
            if fits and set(digest) <= set("0123456789abcdef") and file.members > 0 and file.name == name:
                return file
        raise ValueError(f"{name!r} is not the name of a file of an adapter")

    @classmethod
    def of(cls, adapter: int, members: int, state: AdapterState | None) -> AdapterFile:
        """Name the file of an adapter; without weights, or without any state, it waits."""
        digest = digest_adapter(state)[:_DIGITS] if state else ""
        return cls(adapter, members, not has_weights(state), digest)


@dataclass(frozen=True)
class AdapterChange:
    """A change of the adapters that is written but not in force.

    Attributes:
        sums: the new content of `SUMS`; putting it in place brings the change into force.
        new: names of the new files.
        obsolete: names of the files that are not listed any more.
        digest: the digest of the folder after the change.
    """

    sums: str
    new: tuple[str, ...]
    obsolete: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class AdapterFolder:
    """One generation of the adapters on disk, see `gen_unlearn.generations`.

    Attributes:
        path: the folder.
        sums: SHA-256 of every file by name, as `SUMS` listed them.
    """

    path: Path
    sums: dict[str, str]

    @classmethod
    def open(cls, path: Path) -> AdapterFolder:
        """Open the present generation.

        Raises:
            ValueError: the folder holds no adapters.
        """
        return cls(path, listed_sums(path, "folder of adapters"))

    @classmethod
    def read(cls, path: Path, work: Callable[[AdapterFolder], T]) -> T:
        """Do `work` on the present generation, again on the next one if a change overtakes it."""
        return read_generation(lambda: cls.open(path), work)

    @cached_property
    def files(self) -> dict[int, AdapterFile]:
        """The adapters that have members, in order.

        Raises:
            ValueError: the list names something else, or an adapter twice.
        """
        files = sorted(AdapterFile.from_name(name) for name in self.sums)
        by_adapter = {file.adapter: file for file in files}
        if len(by_adapter) != len(files):
            raise ValueError(f"{self.path / SUMS} lists an adapter twice")
        return by_adapter

    @property
    def sizes(self) -> dict[int, int]:
        """Members of each adapter that has some."""
        return {adapter: file.members for adapter, file in self.files.items()}

    @property
    def waiting(self) -> frozenset[int]:
        """The adapters that wait to be rebuilt: they do not answer."""
        return frozenset(adapter for adapter, file in self.files.items() if file.waiting)

    @property
    def digest(self) -> str:
        """SHA-256 of the list, which stands for everything in the folder."""
        return _digest(self.sums)

    def state(self, adapter: int) -> AdapterState | None:
        """Read one adapter, and check its SHA-256 and its name; `None` of one that waits and keeps nothing.

        Raises:
            ValueError: it has no members, or its file was changed.
        """
        if adapter not in self.files:
            raise ValueError(f"{self.path} has no adapter {adapter}: it has no members")
        file = self.files[adapter]
        path = self.path / file.name
        content = checked_bytes(path, self.sums[file.name])
        try:
            state = load(content) or None
        except SafetensorError as error:
            raise ValueError(f"{path} is no adapter: {error}") from error
        if AdapterFile.of(adapter, file.members, state) != file or _to_bytes(state) != content:
            raise ValueError(f"{path} does not hold what its name says")
        return state

    def serving(self, names: Collection[str] | None = None) -> dict[int, AdapterState]:
        """Load the adapters that answer, all but those that wait; `verify` checks their bytes, this does not.

        Args:
            names: the arrays to read, such as ``("weights",)`` without the sums; all by default.
        """
        answering = [file for file in self.files.values() if not file.waiting]
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            return dict(pool.map(lambda file: (file.adapter, self._arrays(file, names)), answering))

    def _arrays(self, file: AdapterFile, names: Collection[str] | None) -> AdapterState:
        path = self.path / file.name
        try:
            with safe_open(path, framework="numpy") as tensors:
                return {name: tensors.get_tensor(name) for name in names or sorted(tensors.keys())}
        except FileNotFoundError as error:
            raise OvertakenError(f"{path} is missing") from error
        except SafetensorError as error:
            raise ValueError(f"{path} is no adapter that can answer: {error}") from error

    def verify(self) -> None:
        """Check every byte: sums, names, and that nothing else is there.

        Raises:
            ValueError: something is not as `SUMS` says, or a file is there that it does not list.
        """
        for adapter in self.files:
            self.state(adapter)
        foreign = sorted({entry.name for entry in self.path.iterdir()} - {SUMS, *self.sums})
        if foreign:
            raise ValueError(f"{self.path} holds files that do not belong to it: {first_few(foreign)}")


def save_adapters(states: Mapping[int, AdapterState], sizes: Mapping[int, int], path: Path) -> None:
    """Write all adapters of an ensemble to a folder, in the place of others that may be there.

    Args:
        states: the adapters that have members.
        sizes: members of these, and perhaps 0 of others.
        path: the folder, made if missing.

    Raises:
        ValueError: the folder holds files of something else, or sizes and states do not fit together.
    """
    filled = {adapter: members for adapter, members in sizes.items() if members}
    if filled.keys() != states.keys():
        raise ValueError(f"expected states of {len(filled)} adapters with members, got {len(states)}")
    path.mkdir(parents=True, exist_ok=True)
    present = {entry.name for entry in path.iterdir()}
    foreign = sorted(name for name in present if not _is_file_of_adapters(name))
    if foreign:
        raise ValueError(f"{path} holds files of something else: {first_few(foreign)}; choose another folder")
    changed = {adapter: (members, states[adapter]) for adapter, members in filled.items()}
    change = stage_adapters(AdapterFolder(path, {}), changed, path)
    write_undated(path / SUMS, change.sums.encode())
    for name in present - {SUMS, *change.new}:
        (path / name).unlink()


def stage_adapters(
    folder: AdapterFolder, changed: Mapping[int, tuple[int, AdapterState | None]], staging: Path
) -> AdapterChange:
    """Write and flush the files that a folder needs once some adapters are different.

    Args:
        folder: the adapters.
        changed: members and new state of each adapter that changes. One without members gets no file; one
            with a state without weights, or without any, waits to be rebuilt.
        staging: an existing folder for the new files.
    """
    kept = {
        file.name: folder.sums[file.name] for file in folder.files.values() if file.adapter not in changed
    }

    def write(adapter: int) -> tuple[str, str]:
        members, state = changed[adapter]
        name, content = AdapterFile.of(adapter, members, state).name, _to_bytes(state)
        if name not in folder.sums:
            write_flushed(staging / name, content)
        return name, sha256(content)

    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        sums = kept | dict(pool.map(write, [adapter for adapter, (members, _) in changed.items() if members]))
    flush_folder(staging)
    return AdapterChange(
        sums=sums_text(sums),
        new=tuple(sorted(sums.keys() - folder.sums.keys())),
        obsolete=tuple(sorted(folder.sums.keys() - sums.keys())),
        digest=_digest(sums),
    )


def _to_bytes(state: AdapterState | None) -> bytes:
    return save({name: np.asarray(array, order="C") for name, array in (state or {}).items()})


def _digest(sums: Mapping[str, str]) -> str:
    return sha256(sums_text(sums).encode())


def _is_file_of_adapters(name: str) -> bool:
    try:
        return name == SUMS or bool(AdapterFile.from_name(name))
    except ValueError:
        return False
