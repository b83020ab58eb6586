"""RMIA: membership from the ratio of a model's confidence to that of reference models (arXiv 2312.03262)."""

from __future__ import annotations

import numpy as np

from gen_unlearn.metrics.membership import MembershipResult, membership_result

CONFIDENCE_FLOOR = 1e-30
"""Least confidence in a ratio, so that classes that a model lost do not divide by 0."""

LEAST_REFERENCES = 4
"""Smallest number of reference models."""


def rmia_ratio_scores(target: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Divide the confidence of a model by the mean confidence of models that never saw the images.

    References of forgotten and held-out images are models retrained on the retained ones. Scores of
    `rmia_scores` are a step function of these, and have the same area under the curve but for ties.

    Args:
        target: probability of the label under the model that is tested, ``(n,)``.
        references: the same under each reference, ``(m, n)``, m >= 4.

    Returns:
        float64 of shape ``(n,)``, higher for likelier members.

    Raises:
        ValueError: if the shapes do not match, there are too few references, or a confidence is not in
            [0, 1].
    """
    target, references = _checked(target, references, "image")
    return np.maximum(target, CONFIDENCE_FLOOR) / np.maximum(references.mean(axis=0), CONFIDENCE_FLOOR)


def rmia_scores(
    target: np.ndarray,
    references: np.ndarray,
    population_target: np.ndarray,
    population_references: np.ndarray,
    gamma: float = 2.0,
    offline_a: float = 0.3,
) -> np.ndarray:
    """Compute the share of population images whose ratio an image's own exceeds by the factor `gamma`.

    Zarifzadeh, Liu & Shokri (2024): ``P_z[ratio(x) / ratio(z) >= gamma]``, ``ratio = p_target / p``. As no
    reference saw the images, ``p = ((1 + a) mean_out + 1 - a) / 2`` stands for the mean over references
    half of which did.

    Args:
        target: probability of the label under the model that is tested, ``(n,)``.
        references: the same under each reference, ``(m, n)``, m >= 4.
        population_target: the same of images that no model saw, ``(k,)``; not the ones that are scored.
        population_references: ``(m, k)``.
        gamma: factor, 1 or more.
        offline_a: `a`, in [0, 1]; the less the references overfit, the nearer to 1.

    Returns:
        float64 of shape ``(n,)`` in [0, 1], higher for likelier members.

    Raises:
        ValueError: if shapes do not match, there are too few references, a confidence is not in [0, 1], or
            a constant is out of range.
    """
    if not (gamma >= 1 and 0 <= offline_a <= 1):
        raise ValueError(
            f"expected gamma >= 1 and a in [0, 1], got {gamma} and {offline_a}; the defaults are 2 and 0.3"
        )
    own = _offline_ratio(*_checked(target, references, "image"), offline_a)
    population = _offline_ratio(
        *_checked(population_target, population_references, "population image"), offline_a
    )
    return np.searchsorted(np.sort(population), own / gamma, "right") / len(population)


def rmia_result(
    member_target: np.ndarray,
    member_references: np.ndarray,
    member_labels: np.ndarray,
    outsider_target: np.ndarray,
    outsider_references: np.ndarray,
    outsider_labels: np.ndarray,
    seed: int = 0,
) -> MembershipResult:
    """Measure how well `rmia_ratio_scores` tell members from held-out images of their class.

    Members are the forgotten images, or the retained ones, which unlearning may expose, with references that
    saw neither. The value of another retrained model in place of the target is the floor.

    Args:
        member_target: probability of the label of each member under the model that is tested, ``(k,)``.
        member_references: ``(m, k)``, m >= 4.
        member_labels: integer class of each member, ``(k,)``.
        outsider_target: ``(n,)``, of images that no model saw.
        outsider_references: ``(m, n)``, by the same references.
        outsider_labels: integer class of each outsider, ``(n,)``.
        seed: seed of the bootstrap behind the standard error of the true-positive rate.

    Raises:
        ValueError: if shapes do not match, there are too few references, a confidence is not in [0, 1], or
            no class has both members and outsiders.
    """
    if len(member_references) != len(outsider_references):
        raise ValueError(
            f"expected the same references for both sides, got {len(member_references)} for members and "
            f"{len(outsider_references)} for outsiders; evaluate every reference on both"
        )
    return membership_result(
        rmia_ratio_scores(member_target, member_references),
        member_labels,
        rmia_ratio_scores(outsider_target, outsider_references),
        outsider_labels,
        seed=seed,
    )


def _offline_ratio(target: np.ndarray, references: np.ndarray, a: float) -> np.ndarray:
    """Return ``p_target / p`` with `p` corrected for references that saw no image."""
    mean = ((1 + a) * references.mean(axis=0) + 1 - a) / 2
    return np.maximum(target, CONFIDENCE_FLOOR) / np.maximum(mean, CONFIDENCE_FLOOR)


def _checked(target: np.ndarray, references: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return confidences ``(n,)`` and ``(m, n)`` as float64; raise a ValueError if they are none."""
    if target.ndim != 1 or len(target) == 0 or references.ndim != 2 or references.shape[1:] != target.shape:
        raise ValueError(
            f"expected one confidence per {what} (n,) and per reference (m, n), got {target.shape} and "
            f"{references.shape}; evaluate all models on the same images"
        )
    if len(references) < LEAST_REFERENCES:
        raise ValueError(
            f"expected {LEAST_REFERENCES} references or more, got {len(references)}; "
            "retrain more models without the forgotten images"
        )
    for values in (target, references):
        if not ((values >= 0) & (values <= 1 + 1e-6)).all():
            raise ValueError(
                f"expected confidences in [0, 1], got {values.min()} to {values.max()}; "
                "pass probabilities of the labels, not logits"
            )
    return target.astype(np.float64), references.astype(np.float64)
