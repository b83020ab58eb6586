"""Statistics over seeds: paired intervals, corrected tests, and a ranking that calls a tie a tie."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeAlias

import numpy as np
from scipy import stats

LEAST_SEEDS_TO_RANK = 3
"""With fewer training seeds than this nothing is ranked, nor called indistinguishable."""

SeedRows: TypeAlias = Sequence[Sequence[float]]
"""Values by training seed (rows) and, nested in it, unlearning seed; rows may differ in length."""

Test: TypeAlias = Literal["t", "wilcoxon"]


@dataclass(frozen=True)
class SeedEstimate:
    """A mean over training seeds with its 95 % interval and its components of variance.

    Attributes:
        mean: mean over training seeds of the means over unlearning seeds.
        half_width: half the width of the interval, `None` below two training seeds.
        sigma_train: standard deviation between training seeds. Where no training seed has two unlearning
            seeds, it holds that between unlearning seeds as well.
        sigma_unlearn: standard deviation between unlearning seeds of a training seed; `None` where none has
            two of them, as for a deterministic method, whose true one is 0.
        seeds: number of training seeds.
    """

    mean: float
    half_width: float | None
    sigma_train: float | None
    sigma_unlearn: float | None
    seeds: int

    @property
    def includes_zero(self) -> bool:
        """Say whether the interval includes 0; an interval that is not known includes everything."""
        return self.half_width is None or abs(self.mean) <= self.half_width


def seed_estimate(rows: SeedRows, level: float = 0.95) -> SeedEstimate:
    """Estimate a mean over training seeds, with a t interval of ``I - 1`` degrees of freedom.

    With ``m_ij = mu + a_i + b_ij`` and `J` unlearning seeds the variance of the mean is
    ``sigma_A^2 / I + sigma_B^2 / (I J)``: the variance of the `I` row means over `I`. More unlearning seeds
    cannot replace training seeds. For paired data pass the differences ``m(U_ij) - m(R_i)``.

    Args:
        rows: finite values, one row for each training seed.
        level: how often the interval holds the true mean.

    Raises:
        ValueError: there is no row, a row is empty, or a value is not finite.
    """
    means = row_means(rows)
    count, spread = len(means), float(means.std(ddof=1)) if len(means) > 1 else None
    freedom = sum(len(row) - 1 for row in rows)
    half_width = None
    if spread is not None:
        half_width = float(stats.t.ppf((1 + level) / 2, count - 1)) * spread / math.sqrt(count)
    if freedom == 0:
        return SeedEstimate(float(means.mean()), half_width, spread, None, count)
    squares = sum(
        float(np.square(np.subtract(row, mean)).sum()) for row, mean in zip(rows, means, strict=True)
    )
    within = squares / freedom
    between = None
    if spread is not None:
        inflation = within * sum(1 / len(row) for row in rows) / count
        between = math.sqrt(max(0.0, spread**2 - inflation))
    return SeedEstimate(float(means.mean()), half_width, between, math.sqrt(within), count)


def row_means(rows: SeedRows) -> np.ndarray:
    """Return the mean of every training seed as float64 ``(I,)``.

    Raises:
        ValueError: there is no row, a row is empty, or a value is not finite.
    """
    if not len(rows) or any(not len(row) for row in rows):
        raise ValueError(
            f"expected one training seed or more, each with a value, got rows of lengths "
            f"{[len(row) for row in rows]}; leave out a seed that has none"
        )
    means = np.array([math.fsum(row) / len(row) for row in rows], dtype=np.float64)
    if not np.isfinite(means).all():
        raise ValueError("expected finite values, got NaN or infinity; record such a run as failed")
    return means


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number (Holm 1979, Scand. J. Statist. 6), in the order given."""
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(np.asarray(p_values, dtype=np.float64), kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def paired_p_value(differences: np.ndarray, test: Test = "t") -> float:
    """Return the two-sided p value of paired differences ``(I,)`` against 0.

    The signed rank test of Wilcoxon cannot fall below ``2 ** (1 - I)``: 0.0625 at five seeds. Differences
    that are all 0 give 1.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if not differences.any():
        return 1.0
    if test == "wilcoxon":
        return float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    if error == 0:
        return 0.0
    return float(2 * stats.t.sf(abs(float(differences.mean())) / error, len(differences) - 1))


@dataclass(frozen=True)
class Ranking:
    """Methods from best to worst mean, and which of them cannot be told apart.

    Attributes:
        order: names, the best mean first. The order inside a tie says nothing.
        ties: the largest sets of methods no two of which differ significantly, in the order of their best
            members; a method may be in several, and one in a set of its own differs from all others.
        p_values: Holm-adjusted p value of each pair, in the order of `order`.
    """

    order: tuple[str, ...]
    ties: tuple[tuple[str, ...], ...]
    p_values: Mapping[tuple[str, str], float]

    @property
    def leaders(self) -> tuple[str, ...]:
        """The methods that differ from the best one by nothing but chance."""
        return self.tied_with(self.order[0])

    def tied_with(self, name: str) -> tuple[str, ...]:
        """Return a method and all that tie with it, in the order of the ranking."""
        return tuple(other for other in self.order if any({name, other} <= set(tie) for tie in self.ties))


def ranking(
    values: Mapping[str, SeedRows],
    direction: Literal["lower", "higher"],
    *,
    test: Test = "t",
    alpha: float = 0.05,
    alike: Collection[str] = (),
) -> Ranking:
    """Rank methods by a value, by paired tests of every pair with Holm's correction.

    Args:
        values: name -> values by training seed; row `i` of every method is of the same original, retrained
            model and forget set.
        direction: which values are better.
        test: paired t test, or Wilcoxon's signed rank test.
        alpha: chance of any false difference among all pairs.
        alike: methods that are indistinguishable from retraining. None of them is better than another.

    Raises:
        ValueError: there is no method, fewer than three training seeds, or methods have different ones.
    """
    means = {name: row_means(rows) for name, rows in values.items()}
    _require_rankable({name: len(each) for name, each in means.items()})
    sign = 1.0 if direction == "lower" else -1.0
    order = sorted(means, key=lambda name: sign * float(means[name].mean()))
    pairs = list(combinations(order, 2))
    adjusted = holm(
        [paired_p_value(_difference(means[first], means[second]), test) for first, second in pairs]
    )
    p_values = {
        pair: 1.0 if set(pair) <= set(alike) else value for pair, value in zip(pairs, adjusted, strict=True)
    }
    return Ranking(tuple(order), _ties(order, [pair for pair, p in p_values.items() if p < alpha]), p_values)


def _difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the differences of two methods, 0 where they are of the size of rounding."""
    rounding = 1e-12 * np.maximum(np.abs(first), np.abs(second))
    return np.where(np.abs(first - second) <= rounding, 0.0, first - second)


def _require_rankable(seeds: Mapping[str, int]) -> None:
    if not seeds:
        raise ValueError("expected one method or more to rank, got none")
    if len(set(seeds.values())) > 1:
        raise ValueError(f"expected the same training seeds for every method, got {dict(seeds)} of them")
    count = next(iter(seeds.values()))
    if count < LEAST_SEEDS_TO_RANK:
        raise ValueError(
            f"expected at least {LEAST_SEEDS_TO_RANK} training seeds for a ranking, got {count}; "
            "more unlearning seeds cannot replace them: train more originals and retrained models"
        )


def _ties(order: Sequence[str], differing: Collection[tuple[str, str]]) -> tuple[tuple[str, ...], ...]:
    """Return the largest sets without a differing pair (insert and absorb; Piepho 2004, JCGS 13)."""
    sets = [frozenset(order)]
    for pair in differing:
        split = [
            part
            for each in sets
            for part in ((each - {pair[0]}, each - {pair[1]}) if each.issuperset(pair) else (each,))
        ]
        distinct = list(dict.fromkeys(split))
        sets = [each for each in distinct if not any(each < other for other in distinct)]
    place = {name: rank for rank, name in enumerate(order)}
    return tuple(
        sorted(
            (tuple(sorted(each, key=place.__getitem__)) for each in sets),
            key=lambda tie: [place[n] for n in tie],
        )
    )
