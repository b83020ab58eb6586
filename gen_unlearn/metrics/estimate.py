"""A number with its standard error, the only form in which a metric is reported."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """Hold a measured value and its standard error, in the same unit.

    Raises:
        ValueError: if either is not finite, or the standard error is negative.
    """

    value: float
    standard_error: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or not math.isfinite(self.standard_error) or self.standard_error < 0:
            raise ValueError(
                f"expected a finite value and a finite standard error >= 0, got {self.value} and "
                f"{self.standard_error}; leave out a quantity that could not be measured"
            )

    def __str__(self) -> str:
        """Format as ``12.8 ± 0.4``: to the first significant digit of the error, or to whole numbers."""
        if self.standard_error == 0:
            return f"{self.value:g} ± 0"
        decimals = max(0, -math.floor(math.log10(self.standard_error)))
        if round(self.standard_error, decimals) >= 10.0 ** (1 - decimals):  # 0.096 rounds to 0.1, not 0.10
            decimals = max(0, decimals - 1)
        return f"{self.value:.{decimals}f} ± {self.standard_error:.{decimals}f}"

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate in another unit: value and error times `factor`."""
        return Estimate(self.value * factor, self.standard_error * abs(factor))

    def as_dict(self) -> dict[str, float]:
        """Return the estimate as a JSON-able dictionary."""
        return {"value": self.value, "standard_error": self.standard_error}


def proportion(successes: int, trials: int) -> Estimate:
    """Estimate a probability ``p`` from independent trials.

    The standard error is ``sqrt(p (1 - p) / n)``, but never below ``1 / (n + 1)``: the width of the
    one-sigma Wilson interval at 0 of `n`. The floor acts only at 0 of `n` and `n` of `n`, where the plain
    formula would claim certainty.

    Raises:
        ValueError: if there are no trials, or the successes are not between 0 and `trials`.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(
            f"expected 0 <= successes <= trials with at least one trial, got {successes} of {trials}; "
            "check which images were counted"
        )
    value = successes / trials
    return Estimate(value, max(math.sqrt(value * (1 - value) / trials), 1 / (trials + 1)))


def mean_error(values: np.ndarray, strata: np.ndarray | None) -> float:
    """Return the standard error of the mean of values ``(n,)``.

    Of values that were drawn in fixed numbers from several strata only the spread within them counts:
    ``sqrt(sum_s n_s var_s) / n``. A stratum of one value takes the variance of all.
    """
    if strata is None:
        return float(values.std(ddof=1)) / math.sqrt(len(values))
    total = 0.0
    for stratum in np.unique(strata):
        own = values[strata == stratum]
        total += len(own) * float(own.var(ddof=1) if len(own) > 1 else values.var(ddof=1))
    return math.sqrt(total) / len(values)
