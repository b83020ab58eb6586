"""What an adapter ensemble will cost, before it is built: what deletions touch and read, time and storage.

With `n` adapters, `k` of them for each of `N` images and ``m_j`` members of adapter `j`, the imbalance is
``β = n Σ m_j² / (k N)²``, 1 if all are equally large. A random deletion reads ``Σ m_j² / N = β k² N / n``
records per epoch to fit again what it touches; shards fit on ``N / s`` images each would read that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import numpy as np

from gen_unlearn.adapters.determinism import is_deterministic
from gen_unlearn.adapters.families import AdaptersConfig, FamilyName
from gen_unlearn.adapters.family import AdapterFamily, FitJob, HeadShape, Subtractable
from gen_unlearn.adapters.records import STEPS, Records
from gen_unlearn.adapters.release import ReleaseConfig
from gen_unlearn.adapters.routing import members_of
from gen_unlearn.receipts import Level
from gen_unlearn.repro import ID_BYTES, numpy_generator
from gen_unlearn.words import counted

USUAL_IMBALANCE = 1.8
"""Of keys that are public images; 1.2 to 2.5 were seen."""

_MOST_TIMED = 2000
_CODE_BYTES = 2


@dataclass(frozen=True)
class PlanConfig:
    """What is planned.

    Attributes:
        count: adapters.
        neighbours: adapters that each image is routed to, at most `count`.
        images: deletable images.
        features: of an encoded image.
        classes: how many.
        family: the kind of adapter.
        imbalance: at least 1; of real routes, see `imbalance_of`.
        requests_per_day: images to delete per day, above 0.
        batch: images that are deleted together, 1 to `images`.
        minimum_batch: deletions from an adapter that release its new weights.
        deadline_days: days after the first of them that release them too, 0 to 36500.

    Raises:
        ValueError: a value outside what is said above.
    """

    count: int = 1000
    neighbours: int = 10
    images: int = 50000
    features: int = 512
    classes: int = 10
    family: FamilyName = "ridge"
    imbalance: float = USUAL_IMBALANCE
    requests_per_day: float = 100.0
    batch: int = 1
    minimum_batch: int = AdaptersConfig().minimum_batch
    deadline_days: float = AdaptersConfig().deadline_days

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.type == "int" and value < 1:
                raise ValueError(f"expected {entry.name} of at least 1, got {value}")
        for name, value, most, what in (
            ("neighbours", self.neighbours, self.count, "count"),
            ("batch", self.batch, self.images, "images"),
        ):
            if value > most:
                raise ValueError(f"expected {name} of at most {what} ({most}), got {value}")
        if not (math.isfinite(self.requests_per_day) and self.requests_per_day > 0):
            raise ValueError(f"expected requests_per_day above 0, got {self.requests_per_day}")
        if not 1 <= self.imbalance <= self.count:
            raise ValueError(
                f"expected imbalance from 1 to count ({self.count}), got {self.imbalance}; it is 1 if "
                f"all adapters have as many members"
            )
        _ = ReleaseConfig(self.minimum_batch, self.deadline_days)

    @property
    def days_to_fill(self) -> float:
        """Days from the first to the last deletion of a minimum batch; infinite with fewer members."""
        share = self.neighbours / self.count
        if 1 < self.minimum_batch > share * self.images:
            return math.inf
        return (self.minimum_batch - 1) / (share * self.requests_per_day)


class Measured(NamedTuple):
    """What one adapter takes on this machine: seconds to change it, and bytes to keep it."""

    seconds: float
    adapter_bytes: int


@dataclass(frozen=True)
class EnsemblePlan:
    """What an ensemble will cost; expected values, for deletions of random images.

    Attributes:
        config: what was planned.
        members: mean members of an adapter.
        touched: adapters that a batch changes.
        visits: records that are read to fit the adapters again that a single deletion touches, all epochs;
            families from which records are subtracted read none of them.
        seconds: to change what a batch touches, timed on this machine, in one process.
        seconds_per_day: for all requests of a day, in such batches.
        ledger_bytes: codes and routes of all images.
        adapters_bytes: the adapters' states.
        level: of the promise, on this machine.
        masked_after_a_day: share of the adapters that a day's requests touch: those that would be masked if
            they waited.
        days_to_release: from a deletion until the new weights of its adapters are released: until these had
            `minimum_batch` deletions, at most until the deadline; 0 if nothing is held back.
        shards_beaten: with fewer shards than that, retraining one, as SISA does, reads more.
    """

    config: PlanConfig
    members: float
    touched: float
    visits: float
    seconds: float
    seconds_per_day: float
    ledger_bytes: int
    adapters_bytes: int
    level: Level
    masked_after_a_day: float
    days_to_release: float
    shards_beaten: float

    def as_dict(self) -> dict[str, object]:
        """Return the plan as a JSON-able dictionary; the settings come first."""
        values = asdict(self)
        return values.pop("config") | values

    def rows(self) -> dict[str, str]:
        """Return the plan for people, by what it is."""
        config = self.config
        return {
            "adapters": f"{config.count:,} of family {config.family}, {config.neighbours} per image",
            "images": f"{config.images:,}, {config.features:,} features, {config.classes:,} classes",
            "members": f"{self.members:,.0f} per adapter, imbalance {config.imbalance:.2f}",
            "touched": f"{self.touched:.1f} adapters by {counted(config.batch, 'deletion')}"
            f"{' at once' * (config.batch > 1)}",
            "visits": f"{self.visits:,.0f} records to fit again what one deletion touches",
            "seconds": f"{self.seconds:.3g} for such a batch, on this machine, encoding left out",
            "seconds per day": f"{self.seconds_per_day:.3g} for {counted(config.requests_per_day, 'image')}",
            "ledger": _in_bytes(self.ledger_bytes),
            "adapters on disk": _in_bytes(self.adapters_bytes),
            "level": self.level,
            "minimum batch": f"{config.minimum_batch} per adapter, {self._release_in_words()}",
            "masked": f"{self.masked_after_a_day:.0%} of the adapters, if a day's requests waited",
            "against shards": f"reads less than SISA of fewer than {self.shards_beaten:.1f} shards",
        }

    def _release_in_words(self) -> str:
        """Say what releases new weights of an adapter, and when."""
        config = self.config
        if self.days_to_release == 0:
            return "nothing is held back"
        reached = f"reached after {counted(config.days_to_fill, 'day')}"
        if config.days_to_fill == math.inf:
            reached = f"never reached: adapters have {counted(round(self.members), 'member')}"
        if config.days_to_fill <= config.deadline_days:
            return reached
        return f"{reached}; the deadline of {counted(config.deadline_days, 'day')} decides"


def plan(config: PlanConfig, family: AdapterFamily | None = None) -> EnsemblePlan:
    """Plan an ensemble, and time a small fit of its family for it.

    Args:
        config: what is planned.
        family: its settings; those of `AdaptersConfig` by default.
    """
    heads = AdaptersConfig(family=config.family).heads if family is None else family
    shape = HeadShape(config.features, config.classes)
    share = config.neighbours / config.count
    members = share * config.images
    met = config.imbalance * members  # Mean size of an adapter that a random image is in.
    measured = measure(heads, shape, max(1, round(met)))
    touched = touched_adapters(config.count, config.neighbours, config.batch)
    return EnsemblePlan(
        config=config,
        members=members,
        touched=touched,
        visits=config.neighbours * met * heads.visits(1),
        seconds=touched * measured.seconds,
        seconds_per_day=touched * measured.seconds * config.requests_per_day / config.batch,
        ledger_bytes=_CODE_BYTES * (config.features + config.neighbours) * config.images,
        adapters_bytes=config.count * measured.adapter_bytes,
        level="bit-exact" if is_deterministic(heads, shape) else "distributional",
        masked_after_a_day=touched_adapters(config.count, config.neighbours, config.requests_per_day)
        / config.count,
        days_to_release=min(config.days_to_fill, config.deadline_days),
        shards_beaten=config.count / (config.imbalance * config.neighbours**2),
    )


def touched_adapters(adapters: int, neighbours: int, deletions: float) -> float:
    """Return how many adapters random deletions touch, ``n (1 - (1 - k / n)^r)``, if all are equally large.

    Unequal ones are touched less: it is an upper bound.
    """
    return float(adapters * (1 - (1 - neighbours / adapters) ** deletions))


class Change(NamedTuple):
    """What a deletion takes: adapters that it touches, and records read to fit these again."""

    touched: int
    visits: int


def change_of(routes: np.ndarray, deleted: np.ndarray, adapters: int, family: AdapterFamily) -> Change:
    """Count what deleting records takes, exactly.

    Args:
        routes: of all records, int16 ``(n, neighbours)``.
        deleted: rows to delete, int64.
        adapters: how many there are.
        family: the kind of adapter.
    """
    before = np.bincount(routes.ravel(), minlength=adapters)
    leaving = np.bincount(routes[deleted].ravel(), minlength=adapters)
    touched = np.flatnonzero(leaving)
    after = (before - leaving)[touched]
    return Change(len(touched), sum(family.visits(int(members)) for members in after if members))


def imbalance_of(routes: np.ndarray, adapters: int) -> float:
    """Return ``n Σ m_j² / (k N)²`` of routes, int16 ``(n, neighbours)``: 1 if all adapters are as large."""
    members = np.array([len(rows) for rows in members_of(routes, adapters)], dtype=np.float64)
    return float(adapters * (members**2).sum() / members.sum() ** 2)


def measure(family: AdapterFamily, shape: HeadShape, members: int) -> Measured:
    """Time what a deletion takes of one adapter: the best of a few tries, on random records.

    Adapters from which records are subtracted lose one record, others are fit again, several at once; more
    than 2000 members are timed with 2000, and the time is scaled.

    Args:
        family: the kind of adapter.
        shape: sizes of the adapter.
        members: of the adapter, at least 1.
    """
    timed = min(members, _MOST_TIMED)
    jobs = [FitJob(adapter, _random_records(shape, timed, adapter)) for adapter in range(8)]
    if isinstance(family, Subtractable):
        state = family.fit(jobs[:1], shape, 0)[0]
        gone = jobs[0].members.select(slice(0, 1))
        seconds = min(_seconds_to_subtract(family, state, gone, shape) for _ in range(5))
    else:
        tries = [_seconds_to_fit(family, jobs, shape) for _ in range(2)]
        state = family.fit(jobs[:1], shape, 0)[0]
        seconds = min(tries) / len(jobs) * members / timed
    return Measured(seconds, sum(array.nbytes for array in state.values()))


def _seconds_to_subtract(
    family: Subtractable, state: Mapping[str, np.ndarray], gone: Records, shape: HeadShape
) -> float:
    started = time.perf_counter()
    family.complete(family.update(state, gone, -1, shape))
    return time.perf_counter() - started


def _seconds_to_fit(family: AdapterFamily, jobs: list[FitJob], shape: HeadShape) -> float:
    started = time.perf_counter()
    family.fit(jobs, shape, 0)
    return time.perf_counter() - started


def _random_records(shape: HeadShape, count: int, seed: int) -> Records:
    draw = numpy_generator("plan", seed)
    codes = np.rint(STEPS * draw.standard_normal((count, shape.features))).astype(np.int16)
    ids = draw.integers(0, 256, (count, ID_BYTES)).astype(np.uint8)
    return Records(codes, draw.integers(0, shape.classes, count), ids)


def _in_bytes(size: int) -> str:
    """Write a size with three digits in the unit that suits it."""
    exponent = min(4, (len(f"{float(f'{size:.2e}'):.0f}") - 1) // 3)
    return f"{size / 1000**exponent:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[exponent]}"
