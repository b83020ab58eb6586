"""Membership scores of a classifier's logits, all oriented so that members of the training set score higher.

Logits have shape ``(..., n, classes)``: leading dimensions, such as models, share the labels ``(n,)``.
Everything is computed from logits in float64, since probabilities of confident models round to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np

ScoreName = Literal["loss", "confidence", "entropy", "margin", "modified_entropy"]
"""Score of `loss_scores`, `confidence_scores`, `entropy_scores`, `margins` or `modified_entropy_scores`."""


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the margin ``z_y - logsumexp_{j != y} z_j``, which is ``log p_y - log(1 - p_y)``.

    Carlini et al. (2022), arXiv 2112.03570, scale confidences in this way because the result is close to
    normal over training seeds. It is not bounded, and keeps its precision where ``p_y`` rounds to 1.

    Args:
        logits: ``(..., n, classes)``, at least two classes.
        labels: integer class of each image, ``(n,)``.

    Returns:
        float64 of shape ``(..., n)``.

    Raises:
        ValueError: if shapes do not match, a label is no class, or a logit is not finite.
    """
    logits, own = _logits_and_own(logits, labels)
    return own - _log_sum_exp(_without(logits, labels))


def loss_scores(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the negative cross-entropy ``log p_y``, in nats, at most 0; see `margins` for the arguments."""
    logits, _ = _logits_and_own(logits, labels)
    return _own(_log_probabilities(logits)[0], labels)


def confidence_scores(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the probability ``p_y`` of the label, in [0, 1]; see `margins` for the arguments."""
    return np.exp(loss_scores(logits, labels))


def entropy_scores(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the negative entropy ``sum_i p_i log p_i``, in nats, at most 0; labels are only checked.

    See `margins` for the arguments.
    """
    logits, _ = _logits_and_own(logits, labels)
    log_p, _ = _log_probabilities(logits)
    return (np.exp(log_p) * log_p).sum(axis=-1)


def modified_entropy_scores(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute ``(1 - p_y) log p_y + sum_{i != y} p_i log(1 - p_i)``, in nats, at most 0.

    It is the negative of the modified entropy of Song & Mittal (2021), arXiv 2003.10595, which is 0 for a
    certain right answer and large for a certain wrong one. See `margins` for the arguments.
    """
    logits, _ = _logits_and_own(logits, labels)
    log_p, log_rest = _log_probabilities(logits)
    terms = np.exp(log_p) * log_rest
    terms[..., np.arange(len(labels)), labels] = np.exp(_own(log_rest, labels)) * _own(log_p, labels)
    return terms.sum(axis=-1)


SCORES: Mapping[ScoreName, Callable[[np.ndarray, np.ndarray], np.ndarray]] = MappingProxyType(
    {
        "loss": loss_scores,
        "confidence": confidence_scores,
        "entropy": entropy_scores,
        "margin": margins,
        "modified_entropy": modified_entropy_scores,
    }
)
"""The function behind each `ScoreName`."""


def score(name: ScoreName, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the score `name`, float64 ``(..., n)``, higher for likelier members.

    Args:
        name: which score.
        logits: ``(..., n, classes)``, at least two classes.
        labels: integer class of each image, ``(n,)``.

    Raises:
        ValueError: if the score is unknown, shapes do not match, a label is no class, or a logit is not
            finite.
    """
    if name not in SCORES:
        raise ValueError(f"expected a score of {sorted(SCORES)}, got {name!r}; name one of them")
    return SCORES[name](logits, labels)


def require_margin_pools(
    unlearned: np.ndarray, retrained: np.ndarray, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Check margins of two pools of models on the same images, and return them as float64.

    Args:
        unlearned: ``(models, n)``, n >= 1.
        retrained: ``(retrained, n)``.
        least: smallest number of models in each pool.

    Raises:
        ValueError: if the shapes do not match, a pool is too small, or a margin is not finite.
    """
    shapes = f"{unlearned.shape} and {retrained.shape}"
    if unlearned.ndim != 2 or retrained.ndim != 2 or unlearned.shape[1:] != retrained.shape[1:]:
        raise ValueError(
            f"expected margins (models, n) and (retrained, n) of the same images, got {shapes}; "
            "evaluate all models on the same images in the same order"
        )
    if min(len(unlearned), len(retrained)) < least or unlearned.shape[1] == 0:
        raise ValueError(
            f"expected at least {least} models in each pool and one image, got {shapes}; train more models"
        )
    if not (np.isfinite(unlearned).all() and np.isfinite(retrained).all()):
        raise ValueError("expected finite margins, got NaN or infinity; check the weights of the models")
    return unlearned.astype(np.float64), retrained.astype(np.float64)


def _logits_and_own(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return checked logits as float64, and those of the labels, ``(..., n)``."""
    if (
        logits.ndim < 2
        or logits.shape[-1] < 2
        or labels.dtype.kind not in "iu"
        or labels.shape != logits.shape[-2:-1]
    ):
        raise ValueError(
            f"expected logits (..., n, classes) with two classes or more and n integer labels, got "
            f"{logits.shape} and {labels.dtype} {labels.shape}; pass the class index of each image"
        )
    if labels.size and not (labels.min() >= 0 and labels.max() < logits.shape[-1]):
        raise ValueError(
            f"expected labels in 0..{logits.shape[-1] - 1}, got {labels.min()}..{labels.max()}; "
            "use the class indices of the classifier"
        )
    if broken := int((~np.isfinite(logits)).sum()):
        raise ValueError(
            f"expected finite logits, got {broken} with NaN or infinity; check the weights of the model"
        )
    logits = logits.astype(np.float64)
    return logits, _own(logits, labels)


def _log_probabilities(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``log p`` and ``log(1 - p)`` of every class, both ``(..., n, classes)``.

    Those of the most probable class come from its margin, as `p` may round to 1; all others are at most 1/2.
    """
    top = logits.argmax(axis=-1)[..., None]
    log_p = logits - _log_sum_exp(logits)[..., None]
    log_rest = np.log1p(-np.minimum(np.exp(log_p), 0.5))
    margin = np.take_along_axis(logits, top, axis=-1) - _log_sum_exp(_without(logits, top[..., 0]))[..., None]
    np.put_along_axis(log_p, top, -np.logaddexp(0, -margin), axis=-1)
    np.put_along_axis(log_rest, top, -np.logaddexp(0, margin), axis=-1)
    return log_p, log_rest


def _own(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the entry of each image's label, ``(..., n)``."""
    return values[..., np.arange(len(labels)), labels]


def _without(logits: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return a copy whose logit of the given class of each image is minus infinity."""
    others = logits.copy()
    index = np.broadcast_to(classes, logits.shape[:-1])[..., None]
    np.put_along_axis(others, index, -np.inf, axis=-1)
    return others


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the sum of exponentials over the last dimension."""
    top = logits.max(axis=-1)
    return top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))
