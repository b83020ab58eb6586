"""The purity check: change everything that must not matter to an adapter, and name what does.

An adapter that is a pure function of public data and of its own members can be deleted from exactly: what is
left is what a fresh fit without the deleted images gives. One hidden input breaks that: a shared generator,
a mean over all data, padding with somebody else's rows. The method is called again and again with the same
global generators and numbers of threads; each time one thing is different. The adapters that come out
differently, though their members are the same, tell which input leaks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gen_unlearn.adapters.family import AdapterFamily, FitJob, digest_adapter
from gen_unlearn.adapters.purity_checks import CHECKS, Input, Method, Trial, in_order
from gen_unlearn.adapters.purity_processes import cannot_be_sent
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.routing import KeySource, members_of, public_keys, route
from gen_unlearn.processes import process_state


@dataclass(frozen=True)
class EnsembleMethod:
    """The adapters of this package as a `Method`.

    Attributes:
        family: the kind of adapter.
        adapters: how many.
        neighbours: adapters that each record is routed to.
        classes: how many.
        source: what keys are made from.
        seed: of everything.
    """

    family: AdapterFamily
    adapters: int
    neighbours: int
    classes: int
    source: KeySource = "public-samples"
    seed: int = 0

    def recipe(self, public: Records) -> EnsembleRecipe:
        """Return the recipe of the ensemble."""
        keys = public_keys(public.codes, public.ids, self.adapters, self.source, self.seed)
        names = tuple(str(label) for label in range(self.classes))
        return EnsembleRecipe(keys, self.family, self.neighbours, names, self.seed)

    def routes(self, records: Records, public: Records) -> np.ndarray:
        """Return the adapters with the nearest keys, int16 ``(n, neighbours)``."""
        return route(records.codes, self.recipe(public).keys, self.neighbours)

    def fit(self, records: Records, public: Records, adapters: Sequence[int]) -> dict[int, str]:
        """Fit adapters in the order in which they are asked for; several processes share them."""
        recipe, records = self.recipe(public), in_order(records)
        members = members_of(self.routes(records, public), self.adapters)
        if process_state().num_processes > 1:
            states = recipe.fit(records, {adapter: members[adapter] for adapter in adapters})
            return {adapter: digest_adapter(state) for adapter, state in states.items()}
        jobs = [FitJob(adapter, records.select(members[adapter])) for adapter in adapters]
        jobs = [job for job in jobs if len(job.members)]
        fitted = self.family.fit(jobs, recipe.shape, self.seed)
        return {job.adapter: digest_adapter(state) for job, state in zip(jobs, fitted, strict=True)}


@dataclass(frozen=True)
class Leak:
    """Something that must not matter, and does.

    Attributes:
        input: what it is.
        adapters: which adapters it changed, ascending.
        explanation: how that happens, and what to do.
    """

    input: Input
    adapters: tuple[int, ...]
    explanation: str

    def __str__(self) -> str:
        return f"{self.input} (adapters {', '.join(map(str, self.adapters))}): {self.explanation}"


@dataclass(frozen=True)
class Findings:
    """What a check found.

    Attributes:
        leaks: the inputs that leak.
        skipped: what was not checked, and why.
    """

    leaks: tuple[Leak, ...]
    skipped: Mapping[Input, str]


def find_leaks(method: Method, records: Records, public: Records, processes: int = 2) -> Findings:
    """Change what must not matter to the adapters, one thing at a time.

    A method that gives different bytes for the very same call is checked no further.

    Args:
        method: what fits adapters; to be tried in several processes, an instance of an importable class.
        records: deletable records, a few dozen; most adapters need members, and none all of them.
        public: public records.
        processes: how many to start at once; 1 leaves that check out.
    """
    trial = Trial(method, in_order(records), public, processes)
    again = trial.unlike(trial.fit(trial.records, trial.everyone))
    if again:
        leak = Leak("earlier fits", tuple(sorted(again)), CHECKS["earlier fits"][1])
        rest: list[Input] = [name for name in CHECKS if name != "earlier fits"]
        return Findings((leak,), dict.fromkeys(rest, "the same call does not give the same adapters"))
    unsent = "one process was asked for" if processes < 2 else cannot_be_sent(method)
    skipped: dict[Input, str] = {"number of processes": unsent} if unsent else {}
    leaks = []
    for name, (check, explanation) in CHECKS.items():
        if name not in skipped and (changed := check(trial)):
            leaks.append(Leak(name, tuple(sorted(changed)), explanation))
    return Findings(tuple(leaks), skipped)


def assert_pure(method: Method, records: Records, public: Records, processes: int = 2) -> None:
    """Check a method as `find_leaks` does, for tests.

    Raises:
        AssertionError: an input leaks; all of them are named.
    """
    leaks = find_leaks(method, records, public, processes).leaks
    if leaks:
        raise AssertionError("adapters depend on\n" + "\n".join(map(str, leaks)))


def shared_streams(
    stream: Callable[[int, int], Hashable], adapters: Iterable[int], epochs: Iterable[int]
) -> Leak | None:
    """Look for two streams of random numbers that are the same, as sums of seeds and numbers make them.

    Args:
        stream: maps an adapter and an epoch to its seed, or to some of its first draws, such as bytes.
        adapters: which.
        epochs: which.

    Returns:
        The adapters that share a stream, or `None`.
    """
    found: dict[Hashable, tuple[int, int]] = {}
    sharing: set[int] = set()
    example = ""
    epochs = tuple(epochs)
    for adapter in adapters:
        for epoch in epochs:
            other = found.setdefault(stream(adapter, epoch), (adapter, epoch))
            if other != (adapter, epoch):
                sharing |= {adapter, other[0]}
                example = example or (
                    f"adapter {adapter} draws in epoch {epoch} what adapter {other[0]} draws in epoch "
                    f"{other[1]}: derive seeds by hashing, not by adding"
                )
    return Leak("seeds", tuple(sorted(sharing)), example) if sharing else None


def unstable_orders(
    order: Callable[[np.ndarray, int], np.ndarray], ids: np.ndarray, adapters: Iterable[int]
) -> Leak | None:
    """Look for orders of reading in which a removal moves the others, as shuffles by position do.

    Such an adapter can be deleted from exactly all the same, but none of its steps stays what it was.

    Args:
        order: maps sample ids, uint8 ``(n, 16)``, sorted, and an adapter to the rows in the order in which
            they are read, integers ``(n,)``.
        ids: of a few records; each is removed once.
        adapters: which.

    Returns:
        The adapters whose order changes, or `None`.
    """
    rows = np.arange(len(ids))
    unstable = set()
    for adapter in adapters:
        before = order(ids, adapter)
        for gone in rows:
            left = rows[rows != gone]
            if not np.array_equal(left[order(ids[left], adapter)], before[before != gone]):
                unstable.add(adapter)
    explanation = "a removal moves the records that are left: sort them by a hash of their ids"
    return Leak("order of reading", tuple(sorted(unstable)), explanation) if unstable else None
