"""Changes of an exemplar store on disk: only the shards that are concerned are read and written.

A change is staged: its files are written and flushed beside the store, which stays as it is until the new
`SUMS` takes the place of the old one.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from gen_unlearn.atomic import flush_folder, write_flushed, write_undated
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.indexed_images import first_few, unique_ids
from gen_unlearn.repro import among, ids_to_hex
from gen_unlearn.shards import (
    CONFIG,
    SUMS,
    Piece,
    Rows,
    bits_of,
    covering,
    first_word_of,
    first_words,
    grouped,
    is_store_file,
    row_keys,
    sha256,
    shard_limit,
    split_into_shards,
    store_digest,
    sums_text,
)

_WRITERS = 4


@dataclass(frozen=True)
class StoreChange:
    """A change of a store that is written but not in force.

    Attributes:
        sums: the new content of `SUMS`; putting it in place brings the change into force.
        new: names of the new files.
        obsolete: names of the files that are not listed any more.
        digest: the digest of the store after the change.
        count: exemplars after the change.
        changed_per_label: exemplars added or removed, by label.
        bytes_written: size of the new files, `SUMS` included.
    """

    sums: str
    new: tuple[str, ...]
    obsolete: tuple[str, ...]
    digest: str
    count: int
    changed_per_label: dict[int, int]
    bytes_written: int


def stage_deletion(folder: ExemplarFolder, ids: np.ndarray, staging: Path) -> StoreChange:
    """Write the files that a store needs once some exemplars are deleted.

    Args:
        folder: the store.
        ids: what to delete, uint8 ``(n, 16)``.
        staging: an existing folder for the new files.

    Raises:
        ValueError: an id is not held; nothing was written.
    """
    wanted = unique_ids(ids)
    index = {shard: folder.index_of(shard) for shard in folder.holders(wanted)}
    leaving = {shard: among(rows.ids, wanted) for shard, rows in index.items()}
    removed = Rows.joined([Rows.none(()), *(rows.select(leaving[shard]) for shard, rows in index.items())])
    unknown = wanted[~among(wanted, removed.ids)]
    if len(unknown):
        raise ValueError(
            f"{len(unknown)} of {len(wanted)} ids are not in the store: {first_few(ids_to_hex(unknown))}; "
            f"nothing was deleted"
        )
    left = {shard: int((~mask).sum()) for shard, mask in leaving.items()}
    listing = _Listing.of(folder)
    counts = _Counts({piece: left.get(piece, piece.exemplars) for piece in listing.pieces})
    regions = {counts.largest_below(shard.prefix, folder.limit) for shard in leaving}

    def remaining(region: str) -> Rows:
        rows = Rows.joined([folder.rows_of(shard) for shard in counts.under(region)])
        return rows.select(~among(rows.ids, wanted))

    old = [shard for region in regions for shard in counts.under(region)]
    size = listing.replace(old, sorted(regions), remaining, staging)
    return listing.finish(staging, removed.labels, size)


def stage_addition(folder: ExemplarFolder, rows: Rows, staging: Path) -> StoreChange:
    """Write the files that a store needs once some exemplars are added.

    Args:
        folder: the store.
        rows: what to add, in any order; what is held already under the same label stays as it is.
        staging: an existing folder for the new files.
    """
    rows = not_held(folder, rows)
    listing = _Listing.of(folder)
    holders = {shard.prefix: shard for shard in listing.shards}
    counts = _Counts({piece: piece.exemplars for piece in listing.pieces})
    members: dict[str, list[int]] = {}
    for row, word in enumerate(first_words(rows.ids).tolist()):
        held = covering(holders, bits_of(word))
        members.setdefault(held.prefix if held else counts.largest_empty(bits_of(word)), []).append(row)

    def extended(region: str) -> Rows:
        added = rows.select(np.array(members[region]))
        if region not in holders:
            return added
        both = Rows.joined([folder.rows_of(holders[region]), added])
        return both.select(np.argsort(row_keys(both)))

    old = [holders[region] for region in members if region in holders]
    size = listing.replace(old, sorted(members), extended, staging)
    return listing.finish(staging, rows.labels, size)


def not_held(folder: ExemplarFolder, rows: Rows) -> Rows:
    """Return the rows that a store does not hold under the same label, once each, sorted by id and label."""
    keys, first = np.unique(row_keys(rows), return_index=True)
    return rows.select(first[~np.isin(keys, row_keys(folder.select(rows.ids)))])


def save_store(rows: Rows, config: bytes, path: Path) -> None:
    """Write a whole store to a folder, in the place of a store that may be there.

    Args:
        rows: sorted by id and label.
        config: the content of `CONFIG`.
        path: the folder, made if missing.

    Raises:
        ValueError: the folder holds files that belong to no store.
    """
    path.mkdir(parents=True, exist_ok=True)
    present = {entry.name for entry in path.iterdir()}
    foreign = sorted(name for name in present if not is_store_file(name))
    if foreign:
        raise ValueError(f"{path} holds files of something else: {first_few(foreign)}; choose another folder")
    shape = rows.pixels.shape[1:]
    limit = shard_limit(shape, rows.code_length)
    listing = _Listing(sha256(config), json.loads(config), limit)
    write_flushed(path / CONFIG, config)
    size = listing.replace([], [""], lambda _: rows, path)
    change = listing.finish(path, rows.labels, size)
    write_undated(path / SUMS, change.sums.encode())
    for name in present - {SUMS, CONFIG, *change.new}:
        (path / name).unlink()


class _Counts:
    """Numbers of exemplars under any prefix."""

    def __init__(self, counts: Mapping[Piece, int]) -> None:
        self._pieces = sorted(counts)
        self._starts = [first_word_of(piece.prefix) for piece in self._pieces]
        self._sums = [0, *accumulate(counts[piece] for piece in self._pieces)]

    def _span(self, prefix: str) -> tuple[int, int]:
        start = first_word_of(prefix)
        stop = start + 2 ** (64 - len(prefix))
        return bisect_left(self._starts, start), bisect_left(self._starts, stop)

    def total(self, prefix: str) -> int:
        """Return the number of exemplars under a prefix."""
        start, stop = self._span(prefix)
        return self._sums[stop] - self._sums[start]

    def under(self, prefix: str) -> list[Piece]:
        """Return the pieces under a prefix."""
        start, stop = self._span(prefix)
        return self._pieces[start:stop]

    def largest_below(self, prefix: str, limit: int) -> str:
        """Shorten a shard's prefix as long as there are no more than `limit` exemplars under it."""
        while prefix and self.total(prefix[:-1]) <= limit:
            prefix = prefix[:-1]
        return prefix

    def largest_empty(self, bits: str) -> str:
        """Return the shortest prefix of `bits` under which there is no piece."""
        return next(bits[:length] for length in range(len(bits) + 1) if not self.under(bits[:length]))


class _Listing:
    """What a store will list: its shards, as far as a change may concern them, and groups that stay alone."""

    def __init__(self, config_sum: str, config: Mapping[str, Any], limit: int) -> None:
        self.config_sum = config_sum
        self.config = config
        self.limit = limit
        self.shards: dict[Piece, str] = {}
        self.groups: dict[Piece, str] = {}
        self.before: set[Piece] = set()

    @classmethod
    def of(cls, folder: ExemplarFolder) -> _Listing:
        """Take over what a store lists; the groups that were looked into are taken apart."""
        listing = cls(folder.sums[CONFIG], folder.config, folder.limit)
        for piece in folder.top:
            if piece.prefix in folder.opened_groups:
                listing.before.add(piece)
                listing.shards |= folder.group(piece.prefix)
            elif piece.suffix == "sums":
                listing.groups[piece] = folder.sums[piece.name]
            else:
                listing.shards[piece] = folder.sums[piece.name]
        listing.before.update(listing.shards, listing.groups)
        return listing

    @property
    def pieces(self) -> list[Piece]:
        """Shards and groups."""
        return [*self.shards, *self.groups]

    def replace(
        self, old: Iterable[Piece], regions: Iterable[str], content: Callable[[str], Rows], staging: Path
    ) -> int:
        """Put new shards for some prefixes in the place of old ones; write them and return their size."""
        for shard in old:
            del self.shards[shard]

        def write(region: str) -> list[tuple[Piece, str, int]]:
            rows = content(region)
            written = []
            for prefix, span in split_into_shards(rows.ids, self.limit, region):
                part = rows.select(span)
                piece, file = Piece.of_rows(prefix, part), part.to_bytes()
                write_flushed(staging / piece.name, file)
                written.append((piece, sha256(file), len(file)))
            return written

        with ThreadPoolExecutor(_WRITERS) as pool:
            written = [entry for entries in pool.map(write, regions) for entry in entries]
        self.shards |= {piece: digest for piece, digest, _ in written}
        return sum(size for *_, size in written)

    def finish(self, staging: Path, labels: np.ndarray, bytes_written: int) -> StoreChange:
        """Write the groups, flush everything, and describe the change."""
        groups = grouped(self.shards)
        listed = {piece: self.shards[piece] for piece in groups.pop(None, [])} | self.groups
        for prefix, members in groups.items():
            assert prefix is not None
            group = Piece.of_group(prefix, members)
            file = sums_text({shard.name: self.shards[shard] for shard in members}).encode()
            listed[group] = sha256(file)
            if group not in self.before:
                write_flushed(staging / group.name, file)
                bytes_written += len(file)
        flush_folder(staging)
        after = {*self.shards, *listed}
        sums = sums_text({CONFIG: self.config_sum} | {piece.name: digest for piece, digest in listed.items()})
        changed = np.bincount(labels)
        return StoreChange(
            sums=sums,
            new=_names(after - self.before),
            obsolete=_names(self.before - after),
            digest=store_digest(listed, self.config),
            count=sum(piece.exemplars for piece in listed),
            changed_per_label={int(label): int(changed[label]) for label in np.flatnonzero(changed)},
            bytes_written=bytes_written + len(sums.encode()),
        )


def _names(pieces: Iterable[Piece]) -> tuple[str, ...]:
    return tuple(sorted(piece.name for piece in pieces))
