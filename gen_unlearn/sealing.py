"""The secret key of a run, and what is made with it.

A sample id is a digest of an image, so whoever has the image can recognise it by the id. What a run keeps of
deleted images is therefore keyed: without the key it tells nothing, with it a known image is recognised.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gen_unlearn.atomic import flush_folder, write_private
from gen_unlearn.forget import ForgetSet
from gen_unlearn.repro import digest_json

_KEY_BYTES = 32
_TOMBSTONE_BYTES = 16


@dataclass(frozen=True)
class RunKey:
    """A secret of 32 random bytes.

    Attributes:
        secret: the bytes; kept out of ``repr``.
    """

    secret: bytes = field(repr=False)

    @classmethod
    def fresh(cls) -> RunKey:
        """Draw a new key from the operating system."""
        return cls(secrets.token_bytes(_KEY_BYTES))

    @classmethod
    def from_file(cls, path: Path) -> RunKey:
        """Read a key.

        Raises:
            ValueError: the file is missing or is no key.
        """
        try:
            text = path.read_bytes().decode("ascii")
            secret = bytes.fromhex(text)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the key of the run, {path}: {error}") from error
        if len(secret) != _KEY_BYTES or text != f"{secret.hex()}\n":
            raise ValueError(f"{path} is not the key of a run: expected {2 * _KEY_BYTES} hexadecimal digits")
        return cls(secret)

    def save(self, path: Path) -> None:
        """Write the key to a new file that only its owner can read."""
        temporary = path.with_name(f".{path.name}.unfinished")
        write_private(temporary, f"{self.secret.hex()}\n".encode("ascii"))
        temporary.replace(path)
        flush_folder(path.parent)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell keys apart and nothing about them."""
        return self._digest(b"fingerprint")[:8].hex()

    def seal(self, *parts: str) -> str:
        """Return a keyed digest (HMAC-SHA256) of some texts, as 64 hexadecimal digits."""
        return self._digest(b"seal" + digest_json(parts).encode()).hex()

    def tombstones(self, ids: np.ndarray) -> list[str]:
        """Return a keyed digest of each id, uint8 ``(n, 16)``, as 32 hexadecimal digits."""
        rows = np.ascontiguousarray(ids)
        return [self._digest(b"tombstone" + row.tobytes())[:_TOMBSTONE_BYTES].hex() for row in rows]

    def _digest(self, message: bytes) -> bytes:
        return hmac.digest(self.secret, message, "sha256")


@dataclass(frozen=True)
class Tombstones:
    """What is left of the ids of deleted images: whoever holds the key and an image can tell that it is one.

    Attributes:
        key: the key of the run.
        marks: one per image.
    """

    key: RunKey
    marks: frozenset[str]

    @classmethod
    def of(cls, forget: ForgetSet, key: RunKey) -> Tombstones:
        """Mark the images of a forget set."""
        return cls(key, frozenset(key.tombstones(forget.ids)))

    @classmethod
    def from_file(cls, path: Path, key: RunKey) -> Tombstones:
        """Read what `to_text` wrote."""
        return cls(key, frozenset(path.read_text(encoding="ascii").split()))

    def to_text(self) -> str:
        """Return the marks, sorted, one per line."""
        return "".join(f"{mark}\n" for mark in sorted(self.marks))

    @property
    def digest(self) -> str:
        """SHA-256 of the sorted marks."""
        return digest_json(sorted(self.marks))

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """Return which of `ids`, uint8 ``(n, 16)``, have a mark, as bool ``(n,)``."""
        marked = (mark in self.marks for mark in self.key.tombstones(ids)) if self.marks else ()
        return np.fromiter(marked, dtype=bool, count=len(ids)) if self.marks else np.zeros(len(ids), bool)

    def union(self, others: Iterable[Tombstones]) -> Tombstones:
        """Return the marks of all; they must be of one key.

        Raises:
            ValueError: another key.
        """
        marks = self.marks
        for other in others:
            if other.key != self.key:
                raise ValueError("expected deletions from one run, got some with another key")
            marks |= other.marks
        return Tombstones(self.key, marks)

    def __len__(self) -> int:
        return len(self.marks)
