"""How many images, or training seeds, an evaluation needs before a difference can show.

Two independent arms of `N` draws with standard error ``kappa / sqrt(N)`` each, compared by a two-sided z
test, show a true difference with probability `power` if it is ``z kappa sqrt(2 / N)``. Here
``z = z_power + z_{1 - level/2}``, which is 2.8 at power 0.8 and level 0.05. Plan before looking at results.
"""

from __future__ import annotations

import math

from scipy.special import ndtri


def images_needed(
    difference: float, standard_error: float, images: int, power: float = 0.8, level: float = 0.05
) -> int:
    """Compute how many images per model show a difference of two distances: ``2 (z kappa / difference)^2``.

    Args:
        difference: the smallest true difference that matters, in the unit of the metric.
        standard_error: the error that was measured on one model, as from `frechet_standard_error`.
        images: number of images that `standard_error` is from; ``kappa = standard_error sqrt(images)``.
        power: probability of finding the difference if it is real.
        level: probability of finding one if there is none.

    Raises:
        ValueError: if a quantity is not positive and finite, or not ``0 < level < power < 1``.
    """
    _require_positive(difference=difference, standard_error=standard_error, images=images)
    return _per_arm(difference, standard_error * math.sqrt(images), power, level)


def detectable_difference(
    standard_error: float,
    images: int,
    power: float = 0.8,
    level: float = 0.05,
    planned: int | None = None,
) -> float:
    """Compute the smallest true difference of two distances that shows: the inverse of `images_needed`.

    Args:
        standard_error: the error that was measured on one model.
        images: number of images that `standard_error` is from.
        power: probability of finding the difference if it is real.
        level: probability of finding one if there is none.
        planned: number of images per model; `images` if `None`.

    Raises:
        ValueError: if a quantity is not positive and finite, or not ``0 < level < power < 1``.
    """
    planned = images if planned is None else planned
    _require_positive(standard_error=standard_error, images=images, planned=planned)
    return _deviations(power, level) * standard_error * math.sqrt(2 * images / planned)


def training_seeds_needed(
    difference: float, sd_over_seeds: float, power: float = 0.8, level: float = 0.05
) -> int:
    """Compute how many trainings per method show a difference: ``2 (z sd / difference)^2``, at least 2.

    More images do not replace trainings: they measure one model better, not the method. With a handful of
    seeds the standard deviation is itself uncertain, and a t test needs one or two more.

    Args:
        difference: the smallest true difference of two methods that matters.
        sd_over_seeds: standard deviation of the metric over training seeds.
        power: probability of finding the difference if it is real.
        level: probability of finding one if there is none.

    Raises:
        ValueError: if a quantity is not positive and finite, or not ``0 < level < power < 1``.
    """
    _require_positive(difference=difference, sd_over_seeds=sd_over_seeds)
    return max(2, _per_arm(difference, sd_over_seeds, power, level))


def _per_arm(difference: float, deviation: float, power: float, level: float) -> int:
    """Return the draws per arm that show a difference, for one draw with some standard deviation."""
    return math.ceil(2 * (_deviations(power, level) * deviation / difference) ** 2)


def _deviations(power: float, level: float) -> float:
    """Return the detectable difference in units of its standard error: 2.8 for 0.8 and 0.05."""
    if not 0 < level < power < 1:
        raise ValueError(
            f"expected 0 < level < power < 1, got level {level} and power {power}; usual are 0.05 and 0.8"
        )
    return float(ndtri(power) + ndtri(1 - level / 2))


def _require_positive(**quantities: float) -> None:
    """Raise a ValueError that names the first quantity that is not positive and finite."""
    for name, value in quantities.items():
        if not math.isfinite(value) or value <= 0:
            raise ValueError(f"expected a positive, finite {name}, got {value}; measure it first")
