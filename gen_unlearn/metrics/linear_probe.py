"""A linear probe: what frozen features still tell about a forgotten class, ``probe.linear``.

A method that only changes the head scores 0 on the forgotten class, and a new head finds it again. The
features of a model retrained without the class tell it from others too, far above 0: its probe is the target,
and that of a second retrained model the floor.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from gen_unlearn.metrics.estimate import Estimate, proportion

Head = Literal["ridge", "logistic"]
"""Least squares on indicators of the classes, in closed form, or multinomial logistic regression."""

_ITERATIONS = 1000


@dataclass(frozen=True)
class ProbeResult:
    """Hold the test accuracies of a head that was fitted anew, in percent.

    Attributes:
        forgotten: on test images of the forgotten classes, ``probe.linear``.
        retained: on those of all other classes; a bad value means bad features, not forgetting. `None`
            without such images.
    """

    forgotten: Estimate
    retained: Estimate | None


def linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    forgotten_classes: Collection[int],
    head: Head = "ridge",
    penalty: float = 1.0,
) -> ProbeResult:
    """Fit a linear head on the features of all classes, and test it on the forgotten ones.

    Features are standardised with the training means and deviations; constant ones stay 0. The squared
    weights count `penalty` against the sum of losses, for the logistic head ``penalty / 2``; biases do not.

    Args:
        train_features: features of the frozen model, floats ``(n, d)``, of forget and retain set together.
        train_labels: true classes, integers ``(n,)``.
        test_features: floats ``(m, d)``.
        test_labels: integers ``(m,)``.
        forgotten_classes: the forgotten classes.
        head: kind of head.
        penalty: strength of the ridge, > 0.

    Raises:
        ValueError: if shapes or types do not fit, a feature is not finite, the training or test images lack a
            forgotten class, there is one class alone, the head is unknown, or it does not converge.
    """
    _require_features(train_features, train_labels, "training")
    _require_features(test_features, test_labels, "test")
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"expected as many training as test features, got {train_features.shape[1]} and "
            f"{test_features.shape[1]}; take them from one model and layer"
        )
    gone = np.isin(test_labels, _require_forgotten(forgotten_classes, train_labels, test_labels))
    scaler = StandardScaler().fit(train_features.astype(np.float64))
    model = _fit(scaler.transform(train_features.astype(np.float64)), train_labels, head, penalty)
    right = model.predict(scaler.transform(test_features.astype(np.float64))) == test_labels
    return ProbeResult(_percent(right[gone]), None if gone.all() else _percent(right[~gone]))


def _fit(
    features: np.ndarray, labels: np.ndarray, head: Head, penalty: float
) -> RidgeClassifier | LogisticRegression:
    if not (np.isfinite(penalty) and penalty > 0):
        raise ValueError(f"expected a finite penalty > 0, got {penalty}; 1 is usual")
    match head:
        case "ridge":
            return RidgeClassifier(alpha=penalty).fit(features, labels)
        case "logistic":
            with warnings.catch_warnings():
                warnings.simplefilter("error", ConvergenceWarning)
                try:
                    return LogisticRegression(C=1 / penalty, max_iter=_ITERATIONS).fit(features, labels)
                except ConvergenceWarning as error:
                    raise ValueError(
                        f"expected the head to converge in {_ITERATIONS} iterations, it did not; raise the "
                        f"penalty of {penalty}, or take the ridge head"
                    ) from error
        case _:
            raise ValueError(f"expected a head 'ridge' or 'logistic', got {head!r}; name one of them")


def _percent(right: np.ndarray) -> Estimate:
    return proportion(int(right.sum()), len(right)).scaled(100.0)


def _require_features(features: np.ndarray, labels: np.ndarray, whose: str) -> None:
    if features.ndim != 2 or features.size == 0 or features.dtype.kind != "f":
        raise ValueError(
            f"expected {whose} features, floats of shape (n, d), got {features.dtype} {features.shape}; "
            "flatten what the last hidden layer gives"
        )
    if labels.shape != features.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"expected {len(features)} integer {whose} labels, got {labels.dtype} {labels.shape}; "
            "pass the class of each image"
        )
    if not np.isfinite(features).all():
        raise ValueError(f"expected finite {whose} features, got NaN or infinity; check the model's weights")


def _require_forgotten(classes: Collection[int], train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the forgotten classes as an array if both sets have each, and others are to be told from."""
    missing = sorted(set(classes) - set(np.intersect1d(train, test).tolist()))
    if len(classes) == 0 or missing:
        raise ValueError(
            f"expected training and test images of every forgotten class, got {sorted(classes)}, of which "
            f"{missing} are missing; fit the probe on forget and retain set together"
        )
    if len(np.unique(train)) < 2:
        raise ValueError("expected training images of two classes or more, got one; pass the retain set too")
    return np.asarray(sorted(classes))
