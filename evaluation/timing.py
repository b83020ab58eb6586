"""A timed row of the performance table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table; `target` is the greatest value that meets it, if there is one."""

    work: str
    compared_with: str
    value: float
    spread: float
    unit: str
    target: float | None

    def __str__(self) -> str:
        measured = f"{self.value:.3g} ± {self.spread:.2g}{self.unit}"
        target = ""
        if self.target is not None:
            verdict = "met" if self.value <= self.target else "missed"
            target = f"target {self.target:g}{self.unit} {verdict}"
        return f"{self.work:<62} {self.compared_with:<34} {measured:>18}  {target}"


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
