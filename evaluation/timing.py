"""Rows of the performance table, and how their figures are taken."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self, TypeVar

import numpy as np
import torch

Pair = tuple[float, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: what is measured.
        compared_with: what it is compared with, or what else the number means.
        value: the median over repeats.
        spread: 1.4826 times the median distance of the repeats from it: of a normal law, its deviation. Of a
            median over steps of methods, its standard error.
        unit: written behind the number, with a blank if it has one.
        target: the worst value that meets it; `None` for a row that is for information.
        better: which side of the target meets it.
        reason: why a target is missed, with the measurement that shows it.
    """

    work: str
    compared_with: str
    value: float
    spread: float
    unit: str
    target: float | None = None
    better: Literal["lower", "higher"] = "lower"
    reason: str = ""

    @classmethod
    def of_ratio(
        cls,
        work: str,
        compared_with: str,
        pairs: Sequence[Pair],
        target: float | None = None,
        better: Literal["lower", "higher"] = "lower",
        reason: str = "",
    ) -> Self:
        """Make a row of what `in_turns` measured, as first over second."""
        return cls.of(
            work, compared_with, [first / second for first, second in pairs], " x", target, better, reason
        )

    @classmethod
    def of(
        cls,
        work: str,
        compared_with: str,
        values: Sequence[float],
        unit: str,
        target: float | None = None,
        better: Literal["lower", "higher"] = "lower",
        reason: str = "",
    ) -> Self:
        """Make a row of repeated measurements."""
        median = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(np.asarray(values) - median)))
        return cls(work, compared_with, median, spread, unit, target, better, reason)

    def with_error_of_median(self, count: int) -> Self:
        """Return the row with the standard error of a median of so many values in the place of the spread."""
        return replace(self, spread=math.sqrt(math.pi / 2 / count) * self.spread)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; `None` without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.better == "lower" else self.value >= self.target

    @property
    def measured(self) -> str:
        """The number with its unit, and with its spread if there is one."""
        spread = f" ± {self.spread:.2g}" if self.spread else ""
        return f"{self.value:.3g}{spread}{self.unit}"

    @property
    def verdict(self) -> str:
        """The target and whether it is met, and why not; empty without one."""
        if self.target is None:
            return ""
        bound = f"{'≤' if self.better == 'lower' else '≥'} {self.target:g}{self.unit}"
        if self.met:
            return f"{bound}, met"
        chance = " by less than its spread" if abs(self.value - self.target) < self.spread else ""
        return f"{bound}, **missed**{chance}" + (f": {self.reason}" if self.reason else "")

    def __str__(self) -> str:
        """Write the row in one line of plain text."""
        return f"{self.work:<72} {self.compared_with:<44} {self.measured:>20}  {self.verdict}".rstrip()


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds that some work takes, until the device has done it."""
    synchronise()
    started = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - started


def in_turns(
    work: Callable[[], object],
    reference: Callable[[], object],
    repeats: int,
    measure: Callable[[Callable[[], object]], T] = seconds_of,
) -> list[tuple[T, T]]:
    """Return the seconds of both, which take turns, so that a machine whose speed drifts slows both.

    Both are done once before anything is timed, and who begins changes.

    Args:
        work: the first.
        reference: the second.
        repeats: how often both are timed.
        measure: what is returned of each instead of its seconds.
    """
    work()
    reference()
    pairs = []
    for number in range(repeats):
        if number % 2:
            later = measure(reference)
            pairs.append((measure(work), later))
        else:
            pairs.append((measure(work), measure(reference)))
    return pairs


def fastest_workers(work: Callable[[int], object]) -> int:
    """Return the number of worker processes that some work is done fastest with, none to four."""
    choices = [workers for workers in (0, 1, 2, 4) if workers <= (os.cpu_count() or 1)]
    return min(choices, key=lambda workers: seconds_of(lambda: work(workers)))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a folder on the disk of the checkout, which a folder for temporary files may not be on."""
    runs = Path(__file__).parents[1] / "runs"
    runs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs) as folder:
        yield Path(folder)


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread, and those that it starts, on one core: another one may have more beside it to do."""
    if not hasattr(os, "sched_setaffinity"):  # Linux alone lets a program choose.
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def synchronise() -> None:
    """Wait until the device has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
