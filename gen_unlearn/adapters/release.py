"""When rebuilt adapters are published: so late that comparing them with the old ones gives nobody away.

Who has an adapter's weights, or all of its scores, before and after a single deletion can tell what was
deleted, and after a single addition what was added; see `gen_unlearn.adapters.attacks`. So new weights are
held back until enough of the adapter has changed, or a deadline is over. That is about publishing: the
adapters that answer are rebuilt, or masked, at once, and may give their class alone away until then, see
`label_only`.

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

_MOST_DAYS = 36500.0


@dataclass(frozen=True)
class ReleaseConfig:
    """When new weights of an adapter are published.

    Attributes:
        minimum_batch: deletions from and additions to the adapter since its last release, at least 1, which
            holds nothing back; more than the classes, for residuals of fewer records are found exactly.
        deadline_days: days after the first of them, 0 to 36500, when it is published anyway.

    Raises:
        ValueError: a number outside of that.
    """

    minimum_batch: int
    deadline_days: float = 30.0

    def __post_init__(self) -> None:
        if self.minimum_batch < 1:
            raise ValueError(
                f"expected adapters.minimum_batch of at least 1, got {self.minimum_batch}; 1 holds none back"
            )
        if not 0 <= self.deadline_days <= _MOST_DAYS:
            raise ValueError(
                f"expected adapters.deadline_days from 0 to {_MOST_DAYS:g}, got {self.deadline_days}; "
                f"0 holds none back"
            )


@dataclass(frozen=True)
class Held:
    """What changed in one adapter since its weights were released.

    Attributes:
        changes: records that were deleted from it or added to it, at least 1.
        since: time of the first of them, ISO 8601 with a time zone.

    Raises:
        ValueError: no change, or a time that is not of that form.
    """

    changes: int
    since: str

    def __post_init__(self) -> None:
        if self.changes < 1 or _time(self.since).tzinfo is None:
            raise ValueError(
                f"expected changes of at least 1 since a time with its zone, got {self.changes} since "
                f"{self.since!r}"
            )


@dataclass(frozen=True)
class HeldBack:
    """Adapters whose new weights are held back. Changes return a new value.

    It says where images were deleted or added: keep it as private as the images, and outside of the model's
    folder.

    Attributes:
        adapters: what each of them waits with, by its number.
    """

    adapters: Mapping[int, Held] = field(default_factory=lambda: MappingProxyType({}))

    def after(self, routes: np.ndarray, when: datetime) -> HeldBack:
        """Return the state after a deletion or an addition, before anything is released.

        Args:
            routes: of the deleted or added records, int16 ``(n, neighbours)``.
            when: time of the change, with its zone.
        """
        adapters = dict(self.adapters)
        touched, counts = np.unique(routes, return_counts=True)
        for adapter, count in zip(touched.tolist(), counts.tolist(), strict=True):
            known = adapters.get(adapter, Held(count, when.isoformat()))
            more = count if adapter in adapters else 0
            adapters[adapter] = Held(known.changes + more, known.since)
        return HeldBack(adapters)

    def settled(self, config: ReleaseConfig, now: datetime) -> HeldBack:
        """Return the state with all that is due released."""
        return self.released(self.due(config, now))

    def changed(self, routes: np.ndarray, config: ReleaseConfig, now: datetime) -> HeldBack:
        """Return the state after a deletion or an addition, as it is kept.

        What was due before is released first, so that what is new is not published with it.

        Args:
            routes: of the deleted or added records, int16 ``(n, neighbours)``.
            config: when adapters are due.
            now: the time, with its zone.
        """
        return self.settled(config, now).after(routes, now).settled(config, now)

    def until(self, config: ReleaseConfig) -> str | None:
        """Return when the last adapter is released at the latest, ISO 8601; `None` if none is held back."""
        if not self.adapters:
            return None
        last = max(_time(held.since) for held in self.adapters.values())
        return (last + timedelta(days=config.deadline_days)).isoformat(timespec="seconds")

    def due(self, config: ReleaseConfig, now: datetime) -> tuple[int, ...]:
        """Return the adapters to release, ascending: those with enough changes, or too old ones.

        Args:
            config: what is enough, and too old.
            now: the time, with its zone.
        """
        oldest = now - timedelta(days=config.deadline_days)
        return tuple(
            adapter
            for adapter, held in sorted(self.adapters.items())
            if held.changes >= config.minimum_batch or _time(held.since) <= oldest
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

    def to_json(self) -> str:
        """Return the text of the file that `load` reads."""
        rows = {str(adapter): asdict(held) for adapter, held in sorted(self.adapters.items())}
        return json.dumps(rows, indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> HeldBack:
        """Read a file of `to_json`; where there is none, nothing is held back.

        Raises:
            ValueError: a file of another kind, or one that this user cannot read.
        """
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                {int(adapter): Held(int(row["changes"]), row["since"]) for adapter, row in rows.items()}
            )
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise ValueError(
                f"cannot read which adapters are held back: {error}; use the run as its owner"
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"expected held-back adapters in {path}, got another file: {error}; if it is lost, "
                f"remove it: then nothing is held back until the next change"
            ) from error


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
