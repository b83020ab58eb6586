"""Where the hyper-parameters of a method are searched, and the one sampler that all methods share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from gen_unlearn.repro import derive_seed

Setting: TypeAlias = float | int | str | bool | tuple[float | int | str, ...]
"""The value of one hyper-parameter."""


@dataclass(frozen=True)
class LogUniform:
    """Numbers between `low` and `high`, both above 0, whose logarithm is uniform."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"expected finite bounds with 0 < low < high, got {self.low} and {self.high}")

    def at(self, share: float) -> float:
        """Return the value below which `share`, in [0, 1), of the values lie."""
        value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class LogitUniform:
    """Numbers between `low` and `high`, both inside (0, 1), whose logit ``log(x / (1 - x))`` is uniform."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < 1:
            raise ValueError(f"expected bounds with 0 < low < high < 1, got {self.low} and {self.high}")

    def at(self, share: float) -> float:
        """Return the value below which `share`, in [0, 1), of the values lie."""
        low, high = (math.log(end) - math.log1p(-end) for end in (self.low, self.high))
        value = 1 / (1 + math.exp(-(low + share * (high - low))))
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """A few values, each as likely as the others."""

    values: tuple[Setting, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.values, tuple) or not self.values:
            raise ValueError(f"expected a tuple of one value or more to choose from, got {self.values!r}")

    def at(self, share: float) -> Setting:
        """Return the value at `share`, in [0, 1), of the list."""
        return self.values[int(share * len(self.values))]


@dataclass(frozen=True)
class IntegerRange:
    """Whole numbers from `low` to `high`, both included, each as likely as the others."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if any(isinstance(end, bool) or not isinstance(end, int) for end in (self.low, self.high)):
            raise ValueError(f"expected whole numbers as bounds, got {self.low!r} and {self.high!r}")
        if self.low > self.high:
            raise ValueError(f"expected low <= high, got {self.low} and {self.high}")

    def at(self, share: float) -> int:
        """Return the number at `share`, in [0, 1), of the range."""
        return self.low + int(share * (self.high - self.low + 1))


Space: TypeAlias = LogUniform | LogitUniform | Choice | IntegerRange
"""The values that one hyper-parameter may take in a search."""


def sample_settings(
    space: Mapping[str, Space], trials: int, seed: int, name: str
) -> list[dict[str, Setting]]:
    """Draw the trials of a search: the same sampler, and as many trials, for every method.

    The value of a hyper-parameter in a trial depends on nothing but `seed`, the method, the trial and the
    hyper-parameter: more trials or a further hyper-parameter leave the other values as they are.

    Args:
        space: hyper-parameter -> the values it may take.
        trials: number of trials, at least 1.
        seed: seed of the search.
        name: name of the method.

    Returns:
        One dictionary of settings for each trial. The first is empty: the defaults of the method. There is
        only this one if `space` is empty, since all others would repeat it.

    Raises:
        ValueError: there is no trial.
    """
    if trials < 1:
        raise ValueError(f"expected at least 1 trial, got {trials}; the first one takes the defaults")
    drawn: list[dict[str, Setting]] = [{}]
    for trial in range(1, trials if space else 1):
        drawn.append(
            {field: kind.at(_share(seed, name, trial, field)) for field, kind in sorted(space.items())}
        )
    return drawn


def _share(seed: int, name: str, trial: int, field: str) -> float:
    """Return a number that is uniform over [0, 1), with 53 hashed bits."""
    return (derive_seed(seed, "search", name, trial, field) >> 10) / 2**53
