"""The layout of exemplars on disk: shards by id, each a safetensors file that is named by what it holds.

A shard holds all exemplars whose ids start with its *prefix*, a string of bits: the shortest under which
there are no more than a fixed number of exemplars. So the layout is a function of the exemplars alone,
whatever was added or deleted before. A deletion rewrites the shards that held the images and, where two
neighbours have become small, merges them. Shards with prefixes longer than ten bits are listed in groups, so
that the list of everything stays short::

    SHA256SUMS                             what belongs to the store; `sha256sum -c SHA256SUMS` checks it
    config.json                            image shape, class names
    01101.83.<digest>.safetensors          prefix, number of exemplars, digest of their ids and labels; with
                                           codes, a second one of codes and pictures after it
    1001011001.512.<digest>.sums           the same for a group: a list of shards, like SHA256SUMS
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from gen_unlearn.repro import ID_BYTES, digest_arrays, digest_json

SUMS = "SHA256SUMS"
"""File that lists what belongs to a store. Replacing it changes the store from one state to the next."""

CONFIG = "config.json"

INDEX_DIGITS = 32
"""Digits of a shard's digest that stand for ids and labels alone."""

GROUP_BITS = 10
"""Shards with longer prefixes are listed in groups."""

WORD_BITS = 64
"""Bits of an id that prefixes are taken from."""

_TARGET_BYTES = 2**18
_WHOLE = "all"
_NAME = re.compile(
    rf"({_WHOLE}|[01]{{1,{WORD_BITS}}})\.(0|[1-9][0-9]*)\."
    rf"([0-9a-f]{{{INDEX_DIGITS}}}(?:[0-9a-f]{{{INDEX_DIGITS}}}(?=\.safetensors))?)\.(safetensors|sums)"
)
_SIDES = ("height", "width", "channels")


class Rows(NamedTuple):
    """Exemplars, sorted by id and then by label.

    Attributes:
        pixels: uint8 ``(n, height, width, channels)``.
        labels: int64 ``(n,)``.
        ids: uint8 ``(n, 16)``.
        codes: int16 ``(n, code_length)``, the keys that a classifier's exemplars vote with; `None` elsewhere.
    """

    pixels: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    codes: np.ndarray | None = None

    @property
    def code_length(self) -> int:
        """Length of the codes; 0 without codes."""
        return 0 if self.codes is None else self.codes.shape[1]

    def select(self, rows: np.ndarray | slice) -> Rows:
        """Return some rows, given by indices, a mask or a slice."""
        codes = None if self.codes is None else self.codes[rows]
        return Rows(self.pixels[rows], self.labels[rows], self.ids[rows], codes)

    def without_pixels(self) -> Rows:
        """Return copies of the other columns: views would keep the whole file that was read in memory."""
        codes = None if self.codes is None else self.codes.copy()
        return Rows(np.empty(len(self.ids), np.uint8), self.labels.copy(), self.ids.copy(), codes)

    @classmethod
    def none(cls, image_shape: tuple[int, ...], code_length: int = 0) -> Rows:
        """Return no exemplar."""
        return cls(
            np.empty((0, *image_shape), np.uint8),
            np.empty(0, np.int64),
            np.empty((0, ID_BYTES), np.uint8),
            np.empty((0, code_length), np.int16) if code_length else None,
        )

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Put rows one after the other; all have codes, or none."""
        *columns, codes = zip(*parts, strict=True)
        joined = None if codes[0] is None else np.concatenate(codes)
        pixels, labels, ids = map(np.concatenate, columns)
        return cls(pixels, labels, ids, joined)

    def to_bytes(self) -> bytes:
        """Return a shard's file."""
        parts = {"pixels": self.pixels, "labels": self.labels, "ids": self.ids}
        if self.codes is not None:
            parts["codes"] = self.codes
        return save({name: np.ascontiguousarray(part) for name, part in parts.items()})

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> Rows:
        """Read a shard's file; anything else is a ValueError that names it."""
        try:
            rows = cls(**load(content))
        except (SafetensorError, TypeError, KeyError) as error:
            raise ValueError(f"{name} is not a shard of exemplars: {error}") from error
        return rows.checked(name)

    def checked(self, name: str) -> Rows:
        """Return the rows if types and lengths are right; else raise a ValueError that names the shard."""
        count = len(self.ids)
        codes = np.empty((count, 0), np.int16) if self.codes is None else self.codes
        shapes = (self.ids.shape, self.labels.shape, len(self.pixels), codes.shape[:1], codes.ndim)
        types = [part.dtype for part in (self.pixels, self.labels, self.ids, codes)]
        expected = ((count, ID_BYTES), (count,), count, (count,), 2)
        if types != [np.uint8, np.int64, np.uint8, np.int16] or shapes != expected:
            raise ValueError(f"{name} is not a shard of exemplars: its tensors do not fit together")
        return self


class Piece(NamedTuple):
    """A shard or a group, as its name tells it.

    Attributes:
        prefix: bits that the ids start with.
        exemplars: how many it holds.
        digest: 32 hexadecimal digits for what is in it: of a shard the ids and labels, which stand for the
            pixels; in a shard with codes 32 more for codes and pictures.
        suffix: ``safetensors`` for a shard, ``sums`` for a group.
        name: the file's name, which is made of all of this.
    """

    prefix: str
    exemplars: int
    digest: str
    suffix: str
    name: str

    @classmethod
    def of(cls, prefix: str, exemplars: int, digest: str, suffix: str) -> Piece:
        """Name a shard or a group."""
        return cls(prefix, exemplars, digest, suffix, f"{prefix or _WHOLE}.{exemplars}.{digest}.{suffix}")

    @classmethod
    def from_name(cls, name: str) -> Piece:
        """Read a file's name; raise a ValueError if it names neither a shard nor a group."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is not the name of a file of an exemplar store")
        prefix, exemplars, digest, suffix = match.groups()
        return cls("" if prefix == _WHOLE else prefix, int(exemplars), digest, suffix, name)

    @classmethod
    def of_rows(cls, prefix: str, rows: Rows) -> Piece:
        """Name a shard."""
        digest = digest_arrays(rows.ids, rows.labels)[:INDEX_DIGITS]
        if rows.codes is not None:
            digest += digest_arrays(rows.codes, rows.pixels)[:INDEX_DIGITS]
        return cls.of(prefix, len(rows.ids), digest, "safetensors")

    @classmethod
    def of_group(cls, prefix: str, shards: Iterable[Piece]) -> Piece:
        """Name a group of shards."""
        shards = list(shards)
        digest = digest_json([shard.name for shard in shards])[:INDEX_DIGITS]
        return cls.of(prefix, sum(shard.exemplars for shard in shards), digest, "sums")


def is_store_file(name: str) -> bool:
    """Tell whether a file's name is one that a store gives."""
    try:
        return name in (SUMS, CONFIG) or bool(Piece.from_name(name))
    except ValueError:
        return False


def shard_limit(image_shape: Sequence[int], code_length: int = 0) -> int:
    """Return the greatest number of exemplars in a shard: a quarter of a mebibyte, and at least one."""
    return max(1, _TARGET_BYTES // (int(np.prod(image_shape)) + 8 + ID_BYTES + 2 * code_length))


def first_words(ids: np.ndarray) -> np.ndarray:
    """Return the first 64 bits of ids ``(n, 16)`` as uint64, which sort as the ids do."""
    return np.ascontiguousarray(ids[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def bits_of(word: int) -> str:
    """Return the 64 bits of an id's first word, the first one first."""
    return format(int(word), f"0{WORD_BITS}b")


def first_word_of(prefix: str) -> int:
    """Return the smallest first word under a prefix."""
    return int(prefix.ljust(WORD_BITS, "0"), 2)


def split_into_shards(ids: np.ndarray, limit: int, prefix: str = "") -> Iterator[tuple[str, slice]]:
    """Divide sorted ids, all under `prefix`, into shards of at most `limit`; skip prefixes without an id."""
    yield from _split(first_words(ids), 0, len(ids), limit, prefix)


def _split(words: np.ndarray, start: int, stop: int, limit: int, prefix: str) -> Iterator[tuple[str, slice]]:
    if stop == start:
        return
    if stop - start <= limit or len(prefix) == WORD_BITS:
        yield prefix, slice(start, stop)
        return
    boundary = np.uint64(first_word_of(prefix + "1"))
    middle = start + int(np.searchsorted(words[start:stop], boundary))
    yield from _split(words, start, middle, limit, prefix + "0")
    yield from _split(words, middle, stop, limit, prefix + "1")


def covering(pieces: Mapping[str, Piece], bits: str) -> Piece | None:
    """Return the piece, out of some by prefix, whose prefix `bits` start with."""
    lengths = range(len(bits) + 1)
    return next((pieces[bits[:length]] for length in lengths if bits[:length] in pieces), None)


def group_prefix(prefix: str) -> str | None:
    """Return the group that a shard is listed in, or `None` if it is listed in `SUMS` itself."""
    return prefix[:GROUP_BITS] if len(prefix) > GROUP_BITS else None


def grouped(shards: Iterable[Piece]) -> dict[str | None, list[Piece]]:
    """Return the shards of each group in order of their prefixes; those without a group under `None`."""
    groups: dict[str | None, list[Piece]] = {}
    for shard in sorted(shards):
        groups.setdefault(group_prefix(shard.prefix), []).append(shard)
    return groups


def store_digest(top: Iterable[Piece], config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a store from the pieces in its `SUMS` and from what its `CONFIG` says."""
    shape = [config[side] for side in _SIDES]
    described = {"class_names": list(config["class_names"]), "image_shape": shape}
    described |= {name: config[name] for name in ("code_length", "decoded_size") if name in config}
    return digest_json({**described, "pieces": [piece.name for piece in sorted(top)]})


def digest_of_rows(rows: Rows, image_shape: Sequence[int], class_names: Sequence[str]) -> str:
    """Return the `store_digest` of exemplars in memory, without codes: the ids stand for the pixels."""
    spans = split_into_shards(rows.ids, shard_limit(image_shape, rows.code_length))
    shards = [Piece.of_rows(prefix, rows.select(span)) for prefix, span in spans]
    groups = grouped(shards)
    top = groups.pop(None, [])
    top += [Piece.of_group(prefix, members) for prefix, members in groups.items() if prefix is not None]
    return digest_of_pieces(top, image_shape, class_names)


def digest_of_pieces(top: Iterable[Piece], image_shape: Sequence[int], class_names: Sequence[str]) -> str:
    """Return the `store_digest` of a store without codes, whose `SUMS` would list these pieces."""
    return store_digest(top, dict(zip(_SIDES, image_shape, strict=True)) | {"class_names": class_names})


def row_keys(rows: Rows) -> np.ndarray:
    """Return one key per row, which sorts as ids and then labels do."""
    labels = rows.labels.astype(">i8").view(np.uint8).reshape(-1, 8)
    return np.ascontiguousarray(np.concatenate([rows.ids, labels], axis=1)).view("S24").reshape(-1)


def sums_text(sums: Mapping[str, str]) -> str:
    """Return names and SHA-256 sums as `sha256sum` writes them, sorted by name."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def parse_sums(text: str, origin: str) -> dict[str, str]:
    """Read what `sums_text` wrote; anything else is a ValueError that names `origin`."""
    sums = {}
    for line in text.splitlines():
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64 or "/" in name:
            raise ValueError(f"{origin} is not a list of SHA-256 sums: {line[:80]!r}")
        sums[name] = digest
    if sums_text(sums) != text:
        raise ValueError(f"{origin} is not written as a list of SHA-256 sums is")
    return sums


def sha256(content: bytes) -> str:
    """Return the SHA-256 of a file's bytes, as `sha256sum` prints it."""
    return hashlib.sha256(content).hexdigest()
