"""Membership scores that compare a model with models that never saw the images."""

from __future__ import annotations

import math

import numpy as np


def likelihood_ratio_score(target: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Compare the scores of a model with those of reference models that never saw the images.

    Offline LiRA (Carlini et al. 2022): ``z = (target - mean of the references) / s``, where ``s`` is the
    standard deviation between references, pooled over the images because references are few. Without a
    second reference there is no ``s``, and the difference is returned (Watson et al. 2022).

    Args:
        target: ``(n,)`` scores under the model that is tested, such as those of `loss_score`.
        references: ``(m, n)`` scores of the same images under each of `m` references.

    Returns:
        float64 ``(n,)``.

    Raises:
        ValueError: if the shapes do not match, a score is not finite, or several references all agree.
    """
    if references.ndim != 2 or len(references) == 0 or target.shape != references.shape[1:]:
        raise ValueError(
            f"expected target scores (n,) and reference scores (m, n) with m >= 1, got {target.shape} and "
            f"{references.shape}; score the same images under every model"
        )
    if not (np.isfinite(target).all() and np.isfinite(references).all()):
        raise ValueError("expected finite scores, got NaN or infinity; check the weights of the models")
    target, references = target.astype(np.float64), references.astype(np.float64)
    difference = target - references.mean(axis=0)
    if len(references) == 1:
        return difference
    deviation = math.sqrt(references.var(axis=0, ddof=1).mean())
    if deviation == 0:
        raise ValueError(
            f"expected {len(references)} different references, got equal scores from all; "
            "train the references with different seeds"
        )
    return difference / deviation
