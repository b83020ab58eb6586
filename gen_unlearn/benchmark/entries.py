"""What the recipes of all benchmarks share: methods, the search of their settings, names of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gen_unlearn.benchmark.selection import Rule
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED, SECOND_RETRAINED


@dataclass(frozen=True)
class MethodEntry:
    """One method of a benchmark.

    Attributes:
        method: its name in the table of methods.
        settings: hyper-parameters that differ from its defaults.
        name: of its row; the method's name by default.
        sets: names of the forget sets it is run on; all by default.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    sets: tuple[str, ...] | None = None

    @property
    def row(self) -> str:
        """Name of its row."""
        return self.name or self.method


@dataclass(frozen=True)
class SearchConfig:
    """How hyper-parameters are searched: the same sampler, and as many trials, for every method.

    Attributes:
        trials: of each method, "do nothing" not counted; 0 to take the settings of the recipe.
        pilot_seeds: training seeds of the pilots, which share nothing with the reported ones.
        rule: how a trial is selected, see `gen_unlearn.benchmark.selection`.
        tolerance: points of accuracy of a classifier, percent of the loss of a generator, see there.
        seed: of the sampler.
    """

    trials: int = 0
    pilot_seeds: int = 3
    rule: Rule = "forget_within_tolerance"
    tolerance: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 0 or self.pilot_seeds < 1:
            raise ValueError(
                f"expected trials of at least 0 and pilot_seeds of at least 1, got {self.trials} and "
                f"{self.pilot_seeds}"
            )


def require_distinct(sets: Sequence[str], rows: Sequence[tuple[str, Sequence[str] | None]]) -> None:
    """Check the names of a recipe.

    Args:
        sets: names of its forget sets.
        rows: name of each method and design, and the forget sets it is run on; `None` for all.

    Raises:
        ValueError: no forget set, a name twice, one of a reference model, or a set that there is not.
    """
    for what, names in (("methods and designs", [name for name, _ in rows]), ("forget_sets", sets)):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"expected distinct names of {what}, got {twice[0]} twice; set a name")
    if taken := [name for name, _ in rows if name in (ORIGINAL, RETRAINED, SECOND_RETRAINED)]:
        raise ValueError(f"{taken[0]} is the name of a reference model; set another name")
    if not sets:
        raise ValueError("expected at least one of forget_sets, got none")
    for name, own in rows:
        if unknown := [one for one in own or () if one not in sets]:
            raise ValueError(f"{name}: expected sets among {', '.join(sets)}, got {unknown[0]}")


class OnSets(Protocol):
    """A method or design of a recipe, and the forget sets that it is run on."""

    @property
    def sets(self) -> tuple[str, ...] | None:
        """Names of forget sets; `None` for all."""


def runs_on(entry: OnSets, forget_set: str) -> bool:
    """Say whether a method or design is run on a forget set."""
    return entry.sets is None or forget_set in entry.sets
