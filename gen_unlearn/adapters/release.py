"""When rebuilt adapters are published: so late that comparing them with the old ones gives nobody away.

Who has an adapter's weights, or all of its scores, before and after a single deletion can tell what was
deleted; see `gen_unlearn.adapters.attacks`. So new weights are held back until enough was deleted from the
adapter, or a deadline is over. That is about publishing: the adapters that answer are rebuilt, or masked,
at once, and may give their class alone away until then, see `label_only`.

What is held back depends on the order of requests. It stays outside of the model, whose bytes must not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import numpy as np

from gen_unlearn.atomic import write_text


@dataclass(frozen=True)
class ReleaseConfig:
    """When new weights of an adapter are published.

    Attributes:
        minimum_batch: deletions from the adapter since its last release, at least 1; more than the classes,
            for residuals of fewer deleted records are found exactly.
        deadline_days: days after the first of them, at least 0, when it is published anyway.

    Raises:
        ValueError: a number below that.
    """

    minimum_batch: int
    deadline_days: float = 30.0

    def __post_init__(self) -> None:
        if self.minimum_batch < 1 or not self.deadline_days >= 0:
            raise ValueError(
                f"expected minimum_batch of at least 1 and deadline_days of at least 0, got "
                f"{self.minimum_batch} and {self.deadline_days}"
            )


@dataclass(frozen=True)
class Held:
    """Deletions from one adapter since its weights were released.

    Attributes:
        deletions: how many, at least 1.
        since: time of the first of them, ISO 8601 with a time zone.

    Raises:
        ValueError: no deletion, or a time that is not of that form.
    """

    deletions: int
    since: str

    def __post_init__(self) -> None:
        if self.deletions < 1 or _time(self.since).tzinfo is None:
            raise ValueError(
                f"expected deletions of at least 1 since a time with its zone, got {self.deletions} since "
                f"{self.since!r}"
            )


@dataclass(frozen=True)
class HeldBack:
    """Adapters whose new weights are held back. Changes return a new value.

    It says where deleted images were: keep it as private as the images, and outside of the model's folder.

    Attributes:
        adapters: what each of them waits with, by its number.
    """

    adapters: Mapping[int, Held] = field(default_factory=lambda: MappingProxyType({}))

    def after(self, routes: np.ndarray, when: datetime) -> HeldBack:
        """Return the state after a deletion.

        Args:
            routes: of the deleted records, int16 ``(n, neighbours)``.
            when: time of the deletion, with its zone.
        """
        adapters = dict(self.adapters)
        touched, counts = np.unique(routes, return_counts=True)
        for adapter, count in zip(touched.tolist(), counts.tolist(), strict=True):
            known = adapters.get(adapter, Held(count, when.isoformat()))
            more = count if adapter in adapters else 0
            adapters[adapter] = Held(known.deletions + more, known.since)
        return HeldBack(adapters)

    def due(self, config: ReleaseConfig, now: datetime) -> tuple[int, ...]:
        """Return the adapters to release, ascending: those with enough deletions, or too old ones.

        Args:
            config: what is enough, and too old.
            now: the time, with its zone.
        """
        oldest = now - timedelta(days=config.deadline_days)
        return tuple(
            adapter
            for adapter, held in sorted(self.adapters.items())
            if held.deletions >= config.minimum_batch or _time(held.since) <= oldest
        )

    def released(self, adapters: Iterable[int]) -> HeldBack:
        """Return the state after adapters were released.

        Raises:
            ValueError: an adapter that is not held back.
        """
        gone = set(adapters)
        if unknown := sorted(gone - self.adapters.keys()):
            raise ValueError(f"expected adapters that are held back, got {unknown}; release what is due")
        return HeldBack({adapter: held for adapter, held in self.adapters.items() if adapter not in gone})

    def save(self, path: Path) -> None:
        """Write a JSON file, all of it or nothing."""
        rows = {str(adapter): asdict(held) for adapter, held in sorted(self.adapters.items())}
        write_text(path, json.dumps(rows, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> HeldBack:
        """Read what `save` wrote; where there is no file, nothing is held back.

        Raises:
            ValueError: a file of another kind.
        """
        if not path.exists():
            return cls()
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                {int(adapter): Held(int(row["deletions"]), row["since"]) for adapter, row in rows.items()}
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"expected held-back adapters in {path}, got another file: {error}") from error


def label_only(scores: np.ndarray) -> np.ndarray:
    """Replace scores by their class alone: 1 at the first highest and 0 elsewhere; rows of zeros stay.

    A row of zeros is an image that no adapter answers for.

    Args:
        scores: float64 ``(n, classes)``.
    """
    chosen = np.zeros_like(scores)
    answered = scores.any(axis=1)
    chosen[np.flatnonzero(answered), scores[answered].argmax(axis=1)] = 1
    return chosen


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
