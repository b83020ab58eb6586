"""How far a classifier's predictions after unlearning lie from those of retrained classifiers.

Predictions are probabilities of shape ``(n, classes)``: row *x* of every array belongs to the same image. All
distances are 0 for equal predictions. None is small by itself: two retrained models differ as well, by their
training seeds. `compare_with_retrained` therefore measures that floor too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import scipy.special

from gen_unlearn.metrics.estimate import Estimate, mean_error
from gen_unlearn.metrics.forgetting import require_distributions
from gen_unlearn.metrics.pool_errors import cross_error, energy_error, floor_error, pair_mean

MODEL_PROBABILITY_FLOOR = 1e-12
"""Least probability of the unlearned model in a KL divergence, which is at most ``ln 1e12 = 27.6`` nats."""

Distance = Literal["disagreement", "js", "kl"]
"""Mean over images of `disagreements_per_image`, `js_per_image` (nats) or `kl_per_image` (nats).

Of arXiv 2603.22870, ``"disagreement"`` is PG_H and ``"kl"`` is PG_S.
"""


@dataclass(frozen=True)
class PredictionGap:
    """Compare the predictions of unlearned models with those of retrained ones.

    Standard errors are those of other training seeds on the same images.

    Attributes:
        distance: the distance `d` between two models, a mean over images.
        to_retrained: mean distance between an unlearned and a retrained model, over all pairs. A pool of one
            model adds nothing to its error; if both have one, the error is that of other images.
        floor: mean distance between two retrained models, over distinct pairs: what `to_retrained` is for a
            perfect method. `None` for one retrained model.
        energy: ``2 E d(U, R) - E d(R, R') - E d(U, U')`` over distinct pairs, an unbiased estimate of the
            energy distance of Székely & Rizzo (2013, J. Stat. Plan. Inference 143). Its mean is 0 if
            unlearned models follow the law of retrained ones, never negative, and at most twice the largest
            distance, which is 1 or ``ln 2``; one value may be below 0. Unlike `to_retrained` it also finds
            models that vary too little. `None` if a pool has one model, and for ``"kl"``, which is no
            admissible distance for it.
        image_error: standard error of `energy`, or of `to_retrained` where that is `None`, of other images
            with the same models.
        models: number of unlearned models.
        retrained: number of retrained models.
        pairs: distance between each unlearned and each retrained model, float64 ``(models, retrained)``.
        retrained_pairs: distance between each two retrained models, symmetric, 0 on the diagonal, float64
            ``(retrained, retrained)``.
    """

    distance: Distance
    to_retrained: Estimate
    floor: Estimate | None
    energy: Estimate | None
    image_error: float
    models: int
    retrained: int
    pairs: np.ndarray = field(repr=False, compare=False)
    retrained_pairs: np.ndarray = field(repr=False, compare=False)


def disagreements_per_image(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Tell on which images two models predict another class; the first of equally probable classes counts.

    Args:
        p: probabilities of one model, ``(n, classes)``, n >= 2.
        q: probabilities of the other on the same images, ``(n, classes)``.

    Returns:
        bool of shape ``(n,)``.

    Raises:
        ValueError: if the shapes differ or a row is no distribution.
    """
    _require_same_images(p, q)
    return p.argmax(axis=1) != q.argmax(axis=1)


def kl_per_image(model: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """Compute ``KL(retrained || model) = sum_c p_R ln(p_R / p_U)`` of each image, in nats.

    A model that lost a class gives it the probability 0, which makes the divergence infinite where the
    retrained model does not. Probabilities of the model are therefore raised to `MODEL_PROBABILITY_FLOOR`,
    without normalising again; the size of large values is a matter of this floor.

    Args:
        model: probabilities of the unlearned model, ``(n, classes)``, n >= 2.
        retrained: probabilities of the retrained model on the same images, ``(n, classes)``.

    Returns:
        float64 of shape ``(n,)``.

    Raises:
        ValueError: if the shapes differ or a row is no distribution.
    """
    _require_same_images(model, retrained)
    clipped = np.maximum(_normalised(model), MODEL_PROBABILITY_FLOOR)
    return scipy.special.rel_entr(_normalised(retrained), clipped).sum(axis=1)


def js_per_image(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Compute the Jensen-Shannon divergence of each image, ``KL(p || m) / 2 + KL(q || m) / 2``, in nats.

    Here ``m = (p + q) / 2``. It is symmetric, between 0 and ``ln 2``, and needs no floor for zeros.

    Args:
        p: probabilities of one model, ``(n, classes)``, n >= 2.
        q: probabilities of the other on the same images, ``(n, classes)``.

    Returns:
        float64 of shape ``(n,)``.

    Raises:
        ValueError: if the shapes differ or a row is no distribution.
    """
    _require_same_images(p, q)
    p, q = _normalised(p), _normalised(q)
    # The doubled form: halves of the smallest floats would be 0 and their divergence infinite.
    terms = scipy.special.rel_entr(2 * p, p + q) + scipy.special.rel_entr(2 * q, p + q)
    return np.maximum(terms.sum(axis=1) / 4, 0.0)


def compare_with_retrained(
    models: Sequence[np.ndarray], retrained: Sequence[np.ndarray], distance: Distance
) -> PredictionGap:
    """Compare a pool of unlearned models with a pool of retrained ones.

    All models are taken as independent, those of one index too; a model in both pools would pull the values
    down. Models, not images, are the unit of the standard errors: pairs share models, and one seed shifts
    predictions on many images. They come from a jackknife over models less its bias (see
    `gen_unlearn.metrics.pool_errors`) and hold for these images, as for a forget set that is given.
    `image_error` is for images that stand for more. What a seed does to single images is in both, so that the
    root of the sum of their squares is somewhat too large for other seeds on other images.

    The energy of ``"disagreement"`` has the mean 0 if each image gets its classes as often from both laws,
    that of ``"js"`` if each probability has the same distribution; neither sees how images depend on each
    other. With ``"kl"``, `to_retrained` is the mean of ``KL(R || U)``, and the floor takes both directions.

    For a perfect method the error of `energy` is too large, by up to 50 % in simulations with two or three
    models per pool, 40 % with four and 30 % with eight, most where models differ by few common factors.
    With one unlearned model, `gen_unlearn.metrics.gap.retrain_gap` gives the difference to the floor with its
    error.

    Args:
        models: probabilities of each unlearned model, one or more of shape ``(n, classes)``, n >= 2.
        retrained: probabilities of each retrained model on the same images, one or more.
        distance: distance between two models.

    Raises:
        ValueError: if a pool is empty, shapes differ, a row is no distribution, or the distance is unknown.
    """
    if len(models) == 0 or len(retrained) == 0:
        raise ValueError(
            f"expected at least one unlearned and one retrained model, got {len(models)} and "
            f"{len(retrained)}; pass the probabilities of each"
        )
    per_image = _per_image(distance)
    to, per_cross = _across(models, retrained, per_image)
    value, image_error = float(to.mean()), mean_error(per_cross, None)
    error = image_error if to.size == 1 else cross_error(to)
    floor = energy = None
    between, per_floor = _within(retrained, per_image)
    if len(retrained) > 1:
        floor = Estimate(pair_mean(between), floor_error(to, between))
        if len(models) > 1 and distance != "kl":
            own, per_own = _within(models, per_image)
            energy = Estimate(2 * value - floor.value - pair_mean(own), energy_error(to, own, between))
            image_error = mean_error(2 * per_cross - per_floor - per_own, None)
    return PredictionGap(
        distance, Estimate(value, error), floor, energy, image_error, len(models), len(retrained), to, between
    )


def _per_image(distance: Distance) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    match distance:
        case "disagreement":
            return disagreements_per_image
        case "js":
            return js_per_image
        case "kl":
            return kl_per_image
        case _:
            raise ValueError(
                f"expected a distance 'disagreement', 'js' or 'kl', got {distance!r}; name one of them"
            )


def _across(
    models: Sequence[np.ndarray],
    retrained: Sequence[np.ndarray],
    per_image: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances ``(M, R)`` between two pools, and their mean for each image, ``(n,)``."""
    means = np.zeros((len(models), len(retrained)))
    total: np.ndarray = np.zeros(len(models[0]))
    for row, model in enumerate(models):
        for column, other in enumerate(retrained):
            values = per_image(model, other)
            means[row, column] = values.mean()
            total += values
    return means, total / means.size


def _within(
    pool: Sequence[np.ndarray], per_image: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return symmetric distances ``(K, K)`` of a pool, 0 on the diagonal, and their mean for each image.

    In a pool of one, where there is no such mean, it is 0.
    """
    means = np.zeros((len(pool), len(pool)))
    total: np.ndarray = np.zeros(len(pool[0]))
    for row, column in itertools.combinations(range(len(pool)), 2):
        both = per_image(pool[row], pool[column]), per_image(pool[column], pool[row])
        values: np.ndarray = np.mean(both, axis=0)
        means[row, column] = means[column, row] = values.mean()
        total += values
    return means, total / max(1, len(pool) * (len(pool) - 1) // 2)


def _normalised(probabilities: np.ndarray) -> np.ndarray:
    """Return probabilities in float64 with rows that sum to 1 within its rounding, not that of float16."""
    exact = probabilities.astype(np.float64)
    return exact / exact.sum(axis=1, keepdims=True)


def _require_same_images(p: np.ndarray, q: np.ndarray) -> None:
    require_distributions(p)
    require_distributions(q)
    if p.shape != q.shape:
        raise ValueError(
            f"expected probabilities of one shape, got {p.shape} and {q.shape}; pass the predictions for the "
            "same images in the same order, over the same classes"
        )
