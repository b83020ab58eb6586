"""An exemplar store on disk, read and changed without loading all of it.

`ExemplarFolder` is one generation of a store, see `gen_unlearn.generations`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from gen_unlearn.generations import OvertakenError, checked_bytes, listed_sums, read_generation
from gen_unlearn.indexed_images import first_few, unique_ids
from gen_unlearn.repro import among, ids_to_hex, image_ids
from gen_unlearn.shards import (
    CONFIG,
    INDEX_DIGITS,
    SUMS,
    Piece,
    Rows,
    bits_of,
    covering,
    first_words,
    group_prefix,
    parse_sums,
    row_keys,
    shard_limit,
    split_into_shards,
    store_digest,
)

T = TypeVar("T")


@dataclass(frozen=True)
class ExemplarFolder:
    """One generation of a store on disk.

    Attributes:
        path: the folder.
        sums: SHA-256 of every file by name, as `SUMS` listed them.
    """

    path: Path
    sums: dict[str, str]
    _groups: dict[str, dict[Piece, str]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: Path) -> ExemplarFolder:
        """Open the present generation.

        Raises:
            ValueError: the folder is no exemplar store.
        """
        folder = cls(path, listed_sums(path, "exemplar store"))
        if CONFIG not in folder.sums:
            raise ValueError(f"{path} is no exemplar store: {SUMS} does not list {CONFIG}")
        return folder

    @classmethod
    def read(cls, path: Path, work: Callable[[ExemplarFolder], T]) -> T:
        """Do `work` on the present generation, again on the next one if a change overtakes it."""
        return read_generation(lambda: cls.open(path), work)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What `CONFIG` says: height, width, channels and class names; of a classifier, more."""
        try:
            config = json.loads(self.checked(CONFIG, self.sums[CONFIG]))
            sides = [config[name] for name in ("height", "width", "channels")]
            sides += [config.get("code_length", 0) + 1, *config.get("decoded_size", [])]
            if all(type(side) is int and side > 0 for side in sides) and config["class_names"] == [
                str(name) for name in config["class_names"]
            ]:
                return dict(config)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.path / CONFIG} does not describe an exemplar store: {error}") from error
        raise ValueError(f"{self.path / CONFIG} does not describe an exemplar store")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes, also of those without an exemplar."""
        return tuple(self.config["class_names"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(height, width, channels)``."""
        return self.config["height"], self.config["width"], self.config["channels"]

    @property
    def decoded_size(self) -> tuple[int, int]:
        """``(height, width)`` of the images that the ids stand for; pictures of them may be smaller."""
        height, width = self.config.get("decoded_size", self.image_shape[:2])
        return height, width

    @property
    def code_length(self) -> int:
        """Length of each exemplar's codes, which a classifier's store has; else 0."""
        return self.config.get("code_length", 0)

    @property
    def limit(self) -> int:
        """Greatest number of exemplars in a shard."""
        return shard_limit(self.image_shape, self.code_length)

    @cached_property
    def top(self) -> list[Piece]:
        """The pieces that `SUMS` lists."""
        return sorted(Piece.from_name(name) for name in self.sums if name != CONFIG)

    @cached_property
    def digest(self) -> str:
        """The `store_digest` of this generation."""
        return store_digest(self.top, self.config)

    def __len__(self) -> int:
        return sum(piece.exemplars for piece in self.top)

    @cached_property
    def _everything(self) -> Rows:
        """Every row, without the pixels."""
        return Rows.joined([Rows.none(()), *map(self.index_of, self.shards())])

    @property
    def ids(self) -> np.ndarray:
        """Sample ids of all exemplars, uint8 ``(n, 16)``, sorted. Reads every shard."""
        return self._everything.ids

    @property
    def labels(self) -> np.ndarray:
        """Class indices of all exemplars, int64 ``(n,)``. Reads every shard."""
        return self._everything.labels

    def group(self, prefix: str) -> dict[Piece, str]:
        """Return the shards of a group in order, each with its SHA-256; reads the group's list once."""
        if prefix not in self._groups:
            groups = [piece for piece in self.top if piece.prefix == prefix and piece.suffix == "sums"]
            if not groups:
                raise ValueError(f"{self.path / SUMS} does not list the group {prefix}")
            group = groups[0]
            text = self.checked(group.name, self.sums[group.name]).decode()
            sums = parse_sums(text, str(self.path / group.name))
            members = dict(sorted((Piece.from_name(name), sums[name]) for name in sums))
            if Piece.of_group(prefix, members) != group:
                raise ValueError(f"{self.path / group.name} does not list what its name says")
            self._groups[prefix] = members
        return self._groups[prefix]

    def shards(self) -> Iterator[Piece]:
        """Yield every shard, in order of the ids."""
        for piece in self.top:
            yield from [piece] if piece.suffix == "safetensors" else self.group(piece.prefix)

    def all_rows(self, pixels: bool = True) -> Rows:
        """Read every shard; without `pixels` the rows have none, which saves the memory."""
        rows = map(self.rows_of, self.shards())
        if pixels:
            return Rows.joined([Rows.none(self.image_shape, self.code_length), *rows])
        return Rows.joined([Rows.none((), self.code_length), *(part.without_pixels() for part in rows)])

    def rows_of(self, shard: Piece) -> Rows:
        """Read one shard, and check its SHA-256 and its name."""
        group = group_prefix(shard.prefix)
        expected = self.sums[shard.name] if group is None else self.group(group)[shard]
        path = self.path / shard.name
        rows = Rows.from_bytes(self.checked(shard.name, expected), str(path))
        if rows.pixels.shape[1:] != self.image_shape:
            raise ValueError(f"{path} holds images of shape {rows.pixels.shape[1:]}, not {self.image_shape}")
        if rows.code_length != self.code_length:
            raise ValueError(f"{path} holds codes of length {rows.code_length}, not {self.code_length}")
        return self._require_named_so(shard, rows)

    def index_of(self, shard: Piece) -> Rows:
        """Read ids and labels of one shard, which its name tells; the rows have no pixels and no codes."""
        path = self.path / shard.name
        try:
            with safe_open(path, framework="numpy") as file:
                labels, ids = file.get_tensor("labels"), file.get_tensor("ids")
        except FileNotFoundError as error:
            raise OvertakenError(f"{path} is missing") from error
        except SafetensorError as error:
            raise ValueError(f"{path} is not a shard of exemplars: {error}") from error
        rows = Rows(np.empty(len(ids), np.uint8), labels, ids).checked(str(path))
        return self._require_named_so(shard, rows, INDEX_DIGITS)

    @property
    def opened_groups(self) -> Collection[str]:
        """The prefixes of the groups that were looked into."""
        return self._groups.keys()

    def holds(self, ids: np.ndarray) -> np.ndarray:
        """Return which of `ids`, uint8 ``(n, 16)``, are held; reads only the shards that may hold them."""
        shards = [Rows.none(()), *map(self.index_of, self.holders(ids))]
        return among(ids, Rows.joined(shards).ids)

    def select(self, ids: np.ndarray) -> Rows:
        """Return the rows with the given ids, uint8 ``(n, 16)``; reads only the shards that may hold them."""
        wanted, shards = unique_ids(ids), map(self.rows_of, self.holders(ids))
        found = (rows.select(among(rows.ids, wanted)) for rows in shards)
        return Rows.joined([Rows.none(self.image_shape, self.code_length), *found])

    def holders(self, ids: np.ndarray) -> list[Piece]:
        """Return the shards that the given ids, uint8 ``(n, 16)``, belong to, in order of the ids."""
        top = {piece.prefix: piece for piece in self.top}
        found: set[Piece] = set()
        for word in np.unique(first_words(ids)).tolist():
            bits = bits_of(word)
            piece = covering(top, bits)
            if piece is not None and piece.suffix == "sums":
                piece = covering({shard.prefix: shard for shard in self.group(piece.prefix)}, bits)
            if piece is not None:
                found.add(piece)
        return sorted(found)

    def checked(self, name: str, expected: str) -> bytes:
        """Return a file's bytes.

        Raises:
            OvertakenError: it is gone.
            ValueError: its SHA-256 is not `expected`.
        """
        return checked_bytes(self.path / name, expected)

    def verify(self) -> None:
        """Check every byte of the store: sums, names, canonical layout, and pixels against ids.

        Raises:
            ValueError: something is not as `SUMS` says, or a file is there that it does not list.
        """
        for piece in self.top:
            members = self.group(piece.prefix) if piece.suffix == "sums" else {piece: ""}
            group = piece.prefix if piece.suffix == "sums" else None
            if any(group_prefix(member.prefix) != group for member in members):
                raise ValueError(f"{self.path / piece.name} lists shards that belong elsewhere")
        for shard in self.shards():
            self._verify_shard(shard)
        layout = {shard.prefix: shard.exemplars for shard in self.shards()}
        spans = split_into_shards(self.ids, self.limit)
        expected = {prefix: span.stop - span.start for prefix, span in spans}
        if layout != expected:
            raise ValueError(f"{self.path} is not divided into shards as its ids require")
        listed = {SUMS, *self.sums, *(shard.name for shard in self.shards())}
        foreign = sorted(entry.name for entry in self.path.iterdir() if entry.name not in listed)
        if foreign:
            raise ValueError(f"{self.path} holds files that do not belong to it: {first_few(foreign)}")

    def _verify_shard(self, shard: Piece) -> None:
        path, rows = self.path / shard.name, self.rows_of(shard)
        keys = row_keys(rows)
        if path.read_bytes() != rows.to_bytes() or (keys[1:] <= keys[:-1]).any():
            raise ValueError(f"{path} is not written as a shard is")
        if self.decoded_size != self.image_shape[:2]:
            return
        wrong = (image_ids(rows.pixels) != rows.ids).any(axis=1)
        if wrong.any():
            raise ValueError(
                f"{int(wrong.sum())} of {len(wrong)} images in {path} do not have the pixels that their ids "
                f"stand for: {first_few(ids_to_hex(rows.ids[wrong]))}"
            )

    def _require_named_so(self, shard: Piece, rows: Rows, digits: int | None = None) -> Rows:
        """Return rows if they are what the first digits of the name say, with labels that there are."""
        held = Piece.of_rows(shard.prefix, rows)
        if (held.exemplars, held.digest) != (shard.exemplars, shard.digest[:digits]):
            raise ValueError(f"{self.path / shard.name} does not hold what its name says")
        if not ((rows.labels >= 0) & (rows.labels < len(self.class_names))).all():
            raise ValueError(f"{self.path / shard.name} has labels of no class")
        return rows
