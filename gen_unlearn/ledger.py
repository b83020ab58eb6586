"""The ledger of a run: one line of JSON for its training and for every change of its exemplars or adapters.

Each line holds the SHA-256 of the line before it and a keyed digest of itself, so that no line can be
changed, taken out or put in. Of a deleted image it keeps a tombstone only, see `gen_unlearn.sealing`. What it
says of the exemplars is sealed with the key and salted, so that equal states do not look equal.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from gen_unlearn.atomic import flush_folder, write_text
from gen_unlearn.sealing import RunKey, Tombstones
from gen_unlearn.shards import sha256

Kind = Literal["trained", "deleted", "added", "rebuilt"]

_NO_LINE = "0" * 64


@dataclass(frozen=True)
class LedgerEntry:
    """One line of a ledger.

    Attributes:
        sequence: number of the line, from 0.
        previous: SHA-256 of the line before, zeros in the first.
        kind: what happened.
        created: when, ISO 8601, UTC.
        salt: 32 random hexadecimal digits.
        state: seal of salt and digest of the exemplars, of an ensemble of its adapters too, after it.
        images: how many were trained on, deleted or added; of ``"rebuilt"`` adapters, how many deleted images
            they are now certainly without.
        remaining: exemplars after it.
        level: the promise of a deletion.
        receipt: name of the receipt of the deletion, or of the rebuilding that completes it.
        receipt_sum: SHA-256 of the receipt's file.
        tombstones: one per deleted image, sorted; of ``"rebuilt"`` those of the deletions that it completes.
        key: fingerprint of the key; in the first line.
        files: SHA-256 of the files that never change, by path in the run; in the first line.
        environments: of an ensemble: digests of the software and processors that its adapters were fit with,
            sorted; in no line of other models.
        seal: keyed digest of all of this.
    """

    sequence: int
    previous: str
    kind: Kind
    state: str
    images: int
    remaining: int
    level: str | None = None
    receipt: str | None = None
    receipt_sum: str | None = None
    tombstones: tuple[str, ...] = ()
    key: str | None = None
    files: Mapping[str, str] | None = None
    environments: tuple[str, ...] | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    salt: str = field(default_factory=lambda: secrets.token_hex(16))
    seal: str = ""

    def sealed(self, key: RunKey, digest: str) -> LedgerEntry:
        """Return the entry with the seals of the exemplars' digest and of itself."""
        entry = replace(self, state=key.seal("state", self.salt, digest))
        return replace(entry, seal=entry._own_seal(key))

    def check(self, key: RunKey) -> None:
        """Raise a ValueError unless the entry is as it was sealed."""
        if self.seal != self._own_seal(key):
            raise ValueError(f"line {self.sequence + 1} was changed, or sealed with another key")

    def describes(self, digest: str, key: RunKey) -> bool:
        """Tell whether this is the state with the given digest."""
        return self.state == key.seal("state", self.salt, digest)

    def _own_seal(self, key: RunKey) -> str:
        return key.seal("entry", json.dumps(replace(self, seal="")._fields(), sort_keys=True))

    def _fields(self) -> dict[str, Any]:
        fields = dict(vars(self))
        if self.environments is None:  # As lines were written before there were adapters.
            del fields["environments"]
        return fields

    def to_line(self) -> bytes:
        """Return the entry as a line."""
        return json.dumps(self._fields()).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> LedgerEntry:
        """Read a line; anything but what `to_line` writes is a ValueError."""
        try:
            fields = json.loads(line)
            known = {"environments": None, **fields}
            tuples = {name: known[name] for name in ("tombstones", "environments")}
            entry = cls(**known | {name: tuple(part) for name, part in tuples.items() if part is not None})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"it is no entry: {error}") from error
        if entry.to_line() != line:
            raise ValueError("it is not written as entries are")
        return entry


@dataclass(frozen=True)
class Ledger:
    """The entries of a run, checked.

    Attributes:
        key: the key of the run.
        lines: the lines as they are in the file.
    """

    key: RunKey
    lines: tuple[bytes, ...]

    @classmethod
    def start(
        cls,
        path: Path,
        key: RunKey,
        digest: str,
        images: int,
        files: Mapping[str, str],
        environments: tuple[str, ...] | None = None,
    ) -> None:
        """Write a ledger whose only line says that the run was trained."""
        entry = LedgerEntry(
            0,
            _NO_LINE,
            "trained",
            "",
            images=images,
            remaining=images,
            key=key.fingerprint,
            files=files,
            environments=environments,
        )
        write_text(path, entry.sealed(key, digest).to_line().decode())

    @classmethod
    def read(cls, path: Path, key: RunKey) -> Ledger:
        """Read and check a ledger. A last line without its end, which is just being written, does not count.

        Raises:
            ValueError: it is missing, or was changed; the message names the line.
        """
        try:
            *lines, _unfinished = path.read_bytes().split(b"\n")
        except OSError as error:
            raise ValueError(f"cannot read the ledger of the run: {error}") from error
        ledger = cls(key, tuple(line + b"\n" for line in lines))
        try:
            ledger._check()
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        return ledger

    @cached_property
    def entries(self) -> list[LedgerEntry]:
        """The entries, oldest first."""
        return [LedgerEntry.from_line(line) for line in self.lines]

    @property
    def head(self) -> str:
        """SHA-256 of the last line. Noted elsewhere, it shows whether lines were cut off at the end."""
        return sha256(self.lines[-1])

    @property
    def size(self) -> int:
        """Bytes of all lines."""
        return sum(map(len, self.lines))

    @property
    def environments(self) -> tuple[str, ...]:
        """Digests of what the adapters of an ensemble that are there were fit with; empty if not noted."""
        return self.entries[-1].environments or ("",)

    @property
    def tombstones(self) -> Tombstones:
        """The tombstones of everything that was deleted."""
        marks = (mark for entry in self.entries for mark in entry.tombstones)
        return Tombstones(self.key, frozenset(marks))

    def deletion_of(self, mark: str) -> LedgerEntry | None:
        """Return the deletion that a tombstone is from."""
        return next((entry for entry in self.entries if mark in entry.tombstones), None)

    @property
    def standing(self) -> list[LedgerEntry]:
        """The entries with a receipt that no later one replaces, as a rebuilding does deletions."""
        standing: list[LedgerEntry] = []
        completed = 0
        for entry in self.entries:
            if entry.kind == "rebuilt":
                del standing[completed:]
                completed = len(standing) + 1
            if entry.receipt is not None:
                standing.append(entry)
        return standing

    @property
    def incomplete(self) -> list[LedgerEntry]:
        """The deletions from an ensemble after which its adapters were not rebuilt yet."""
        return [entry for entry in self.standing if entry.kind == "deleted"]

    def following(
        self,
        kind: Kind,
        digest: str,
        images: int,
        remaining: int,
        level: str | None = None,
        receipt: str | None = None,
        receipt_sum: str | None = None,
        tombstones: tuple[str, ...] = (),
        environments: tuple[str, ...] | None = None,
    ) -> LedgerEntry:
        """Return the sealed entry that follows the last one; `digest` is that of the state after it.

        Without `environments`, those of the last entry hold on.
        """
        entry = LedgerEntry(
            len(self.lines),
            self.head,
            kind,
            "",
            images,
            remaining,
            level,
            receipt,
            receipt_sum,
            tombstones,
            environments=self.entries[-1].environments if environments is None else environments,
        )
        return entry.sealed(self.key, digest)

    def _check(self) -> None:
        if not self.lines:
            raise ValueError("it has no entry")
        if self.entries[0].key != self.key.fingerprint:
            raise ValueError("it belongs to another key")
        previous = _NO_LINE
        for number, (entry, line) in enumerate(zip(self.entries, self.lines, strict=True)):
            if entry.sequence != number or entry.previous != previous:
                raise ValueError(f"line {number + 1} does not follow the line before it")
            entry.check(self.key)
            previous = sha256(line)


def append_line(path: Path, size: int, line: bytes) -> None:
    """Append a line to a ledger of `size` bytes, once however often it is asked for."""
    with path.open("r+b") as file:
        file.truncate(size)
        file.seek(size)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    flush_folder(path.parent)
