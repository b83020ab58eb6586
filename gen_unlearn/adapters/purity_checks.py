"""What must not matter to an adapter, one by one; `gen_unlearn.adapters.purity` runs the checks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from gen_unlearn.adapters.one_thread import pinned_threads
from gen_unlearn.adapters.purity_processes import fit_in_processes
from gen_unlearn.adapters.records import LARGEST_CODE, STEPS, Records
from gen_unlearn.adapters.routing import members_of
from gen_unlearn.repro import ID_BYTES, id_keys, numpy_generator

Input = Literal[
    "earlier fits",
    "global generators",
    "number of threads",
    "number of processes",
    "creation order",
    "partners",
    "order of rows",
    "keys",
    "other adapters' records",
    "an unrelated record",
    "a far record",
    "seeds",
    "order of reading",
]

_FAR = 30 * STEPS
_MOST_REMOVALS = 12


class Method(Protocol):
    """What is checked: a way to make adapters. Thirty lines around your own training code will do."""

    @property
    def adapters(self) -> int:
        """How many there are."""

    def routes(self, records: Records, public: Records) -> np.ndarray:
        """Return the adapters that each record belongs to, integers ``(n, neighbours)``."""

    def fit(self, records: Records, public: Records, adapters: Sequence[int]) -> Mapping[int, str]:
        """Route, fit the adapters that are asked for, and return the digest of each one's bytes.

        Those without members may be left out.
        """


def in_order(records: Records) -> Records:
    """Return records sorted by id and then by label, as a store gives them."""
    return records.select(np.lexsort((records.labels, id_keys(records.ids))))


@dataclass(frozen=True, eq=False)
class Trial:
    """A method with the data it is tried on, and what it gives for them."""

    method: Method
    records: Records
    public: Records
    processes: int

    @property
    def everyone(self) -> range:
        """All adapters."""
        return range(self.method.adapters)

    @cached_property
    def routes(self) -> np.ndarray:
        """Routes of the records."""
        return self.method.routes(self.records, self.public)

    @cached_property
    def expected(self) -> dict[int, str]:
        """Digests of the adapters, which must not change."""
        return self.fit(self.records, self.everyone)

    @cached_property
    def members(self) -> list[str]:
        """Digests of their members."""
        return self.members_in(self.records)

    def fit(
        self, records: Records, adapters: Sequence[int], draws: int = 0, threads: int = 1
    ) -> dict[int, str]:
        """Fit adapters, with a seed of the global generators and a number of threads."""
        with _controlled(draws, threads):
            return dict(self.method.fit(records, self.public, adapters))

    def members_in(self, records: Records) -> list[str]:
        """Return the digest of each adapter's members."""
        records = in_order(records)
        routes = self.method.routes(records, self.public)
        return [records.select(rows).digest for rows in members_of(routes, self.method.adapters)]

    def unlike(self, found: Mapping[int, str], adapters: Iterable[int] | None = None) -> set[int]:
        """Return which adapters are not as expected."""
        chosen = self.everyone if adapters is None else adapters
        return {adapter for adapter in chosen if found.get(adapter) != self.expected.get(adapter)}

    def bystanders(self, records: Records) -> set[int]:
        """Return the adapters that have the same members with other records."""
        pairs = zip(self.members, self.members_in(records), strict=True)
        return {adapter for adapter, (before, after) in enumerate(pairs) if before == after}

    def touched_by(self, records: Records) -> set[int]:
        """Return which adapters other records change though they are not members."""
        return self.unlike(self.fit(records, self.everyone), self.bystanders(records))


def _earlier_fits(trial: Trial) -> set[int]:
    found = trial.unlike(trial.fit(trial.records, trial.everyone))
    replaced = _replaced(trial, np.ones(len(trial.records), dtype=bool))
    for records in (replaced, trial.records.select(slice(0, None, 2))):
        fitted = trial.fit(records, trial.everyone)
        changed = set(fitted) - trial.bystanders(records)
        found |= {adapter for adapter in changed if fitted[adapter] == trial.expected.get(adapter)}
    return found


def _global_generators(trial: Trial) -> set[int]:
    return trial.unlike(trial.fit(trial.records, trial.everyone, draws=1))


def _number_of_threads(trial: Trial) -> set[int]:
    return trial.unlike(trial.fit(trial.records, trial.everyone, threads=2))


def _number_of_processes(trial: Trial) -> set[int]:
    found: set[int] = set()
    for fitted in fit_in_processes(
        trial.method, trial.records, trial.public, trial.everyone, trial.processes
    ):
        found |= trial.unlike(fitted)
    return found


def _creation_order(trial: Trial) -> set[int]:
    return trial.unlike(trial.fit(trial.records, trial.everyone[::-1]))


def _partners(trial: Trial) -> set[int]:
    alone = [trial.fit(trial.records, [adapter]) for adapter in trial.everyone]
    return {adapter for adapter, fitted in enumerate(alone) if trial.unlike(fitted, [adapter])}


def _order_of_rows(trial: Trial) -> set[int]:
    order = numpy_generator("purity", "rows").permutation(len(trial.records))
    return trial.touched_by(trial.records.select(order))


def _keys(trial: Trial) -> set[int]:
    """Delete one half of the records, and the other: each record is deleted once."""
    half = numpy_generator("purity", "halves").permutation(len(trial.records)) % 2 == 0
    found: set[int] = set()
    for kept in (half, ~half):
        routes = trial.method.routes(trial.records.select(kept), trial.public)
        moved = (routes != trial.routes[kept]).any(axis=1)
        found |= set(np.setxor1d(routes[moved], trial.routes[kept][moved]).tolist())
        found |= set(routes[moved].ravel().tolist())
    return found


def _other_adapters_records(trial: Trial) -> set[int]:
    found: set[int] = set()
    for adapter in trial.everyone:
        records = _replaced(trial, (trial.routes != adapter).all(axis=1))
        found |= trial.touched_by(records) & {adapter}
    return found


def _an_unrelated_record(trial: Trial) -> set[int]:
    """Delete single records, until each adapter once was none of theirs."""
    found, waiting = set(), set(trial.everyone)
    order = numpy_generator("purity", "removals").permutation(len(trial.records))
    for row in order[:_MOST_REMOVALS]:
        bystanders = waiting - set(trial.routes[row].tolist())
        if bystanders:
            found |= trial.touched_by(trial.records.select(np.arange(len(trial.records)) != row))
            waiting -= bystanders
    return found


def _a_far_record(trial: Trial) -> set[int]:
    records, found = trial.records, set()
    direction = numpy_generator("purity", "far").choice([-_FAR, _FAR], records.codes.shape[1])
    for code in (direction, -direction):
        pixels = records.pixels
        far = Records(
            np.concatenate([records.codes, code[None].astype(np.int16)]),
            np.append(records.labels, records.labels[0]),
            np.concatenate([records.ids, np.full((1, ID_BYTES), 255, dtype=np.uint8)]),
            None if pixels is None else np.concatenate([pixels, np.full_like(pixels[:1], 255)]),
        )
        found |= trial.touched_by(in_order(far))
    return found


CHECKS: Mapping[Input, tuple[Callable[[Trial], set[int]], str]] = {
    "earlier fits": (
        _earlier_fits,
        "the same call gives something else, or other members the same: start from nothing in every fit, and "
        "key a cache by the content of the members, not by their indices",
    ),
    "global generators": (_global_generators, "draw from a generator of the adapter's own, seeded by a hash"),
    "number of threads": (_number_of_threads, "sums are split between threads: fit with one thread"),
    "number of processes": (
        _number_of_processes,
        "fit an adapter in one process, with its own members alone: no padding of the processes' shares",
    ),
    "creation order": (
        _creation_order,
        "adapters that were made before share something with it: seed by a hash of the adapter's number",
    ),
    "partners": (
        _partners,
        "adapters that are fit with it, or its place among them, share something with it: reset it for each",
    ),
    "order of rows": (_order_of_rows, "sort members by id, and shuffle them by a hash of the ids"),
    "keys": (_keys, "routes of other records moved when records were deleted: make keys from public data"),
    "other adapters' records": (
        _other_adapters_records,
        "records of others were read: pad with masked zeros, and take statistics from members or public data",
    ),
    "an unrelated record": (
        _an_unrelated_record,
        "records of others were counted or read: derive numbers of epochs and draws from members alone",
    ),
    "a far record": (
        _a_far_record,
        "a statistic of all data, such as a mean, class weights or batch norm: take it from public data",
    ),
}


def _replaced(trial: Trial, rows: np.ndarray) -> Records:
    """Change labels of some records, given by a mask, and codes and pixels where that moves no route."""
    records = trial.records
    known = np.unique(records.labels)
    labels, codes = records.labels.copy(), records.codes.copy()
    labels[rows] = known[(np.searchsorted(known, labels[rows]) + 1) % len(known)]
    noise = numpy_generator("purity", "codes").integers(-STEPS // 4, STEPS // 4, codes.shape)
    codes[rows] = (codes[rows] + noise[rows]).clip(-LARGEST_CODE, LARGEST_CODE).astype(np.int16)
    pixels = None if records.pixels is None else records.pixels.copy()
    if pixels is not None:
        pixels[rows] = 255 - pixels[rows]
    changed = Records(codes, labels, records.ids, pixels)
    moved = (trial.method.routes(changed, trial.public) != trial.routes).any(axis=1)
    codes[moved] = records.codes[moved]
    if pixels is not None and records.pixels is not None:
        pixels[moved] = records.pixels[moved]
    return changed


@contextmanager
def _controlled(draws: int, threads: int) -> Iterator[None]:
    """Seed the global generators and set the numbers of threads, and put all of that back afterwards."""
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]), pinned_threads(threads), threadpool_limits(threads):
        random.seed(draws)
        np.random.seed(draws)
        torch.manual_seed(draws)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
