"""How far the outputs of one unlearned classifier lie from those of its retrained one, on one set of images.

Ids ``pg_h``, ``pg_s``, ``js`` and ``actdist`` with the set behind a dot: measure the forget set, the test set
and the test images of forgotten classes separately, for all images together hide a random forget set. 0 is
equal; two retrained models are not, so print the same distances between them, the floor. Errors are those of
other images with the same models; for other seeds see `gen_unlearn.metrics.prediction_gap`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.special

from gen_unlearn.metrics.estimate import Estimate, mean_error, proportion
from gen_unlearn.metrics.prediction_gap import disagreements_per_image, js_per_image, kl_per_image


@dataclass(frozen=True)
class OutputDistances:
    """Hold the distances between two classifiers, means over images; all are 0 for equal outputs.

    Attributes:
        pg_h: images on which another class is predicted, in percent (arXiv 2603.22870).
        pg_s: ``KL(p_R || p_U)``, in nats; probabilities of the unlearned model are at least 1e-12.
        js: Jensen-Shannon divergence, in nats, at most ``ln 2``.
        actdist: ``||p_U - p_R||_2``, the activation distance, at most ``sqrt 2``.
    """

    pg_h: Estimate
    pg_s: Estimate
    js: Estimate
    actdist: Estimate

    def named(self, where: str) -> dict[str, Estimate]:
        """Return the estimates by id, ``<distance>.<where>``, for the set they were measured on."""
        return {f"{name}.{where}": value for name, value in vars(self).items()}


def output_distances(unlearned: np.ndarray, retrained: np.ndarray) -> OutputDistances:
    """Compare an unlearned classifier with the retrained one.

    Args:
        unlearned: logits of the unlearned model, floats ``(n, classes)``, n >= 2.
        retrained: logits of the retrained model on the same images, ``(n, classes)``.

    Raises:
        ValueError: if the shapes differ, there are fewer than two images, or a logit is not finite.
    """
    p, q = probabilities(unlearned), probabilities(retrained)
    disagreements = disagreements_per_image(p, q)
    return OutputDistances(
        pg_h=proportion(int(disagreements.sum()), len(disagreements)).scaled(100.0),
        pg_s=_mean(kl_per_image(p, q)),
        js=_mean(js_per_image(p, q)),
        actdist=_mean(np.linalg.norm(p - q, axis=1)),
    )


def zrf(model: np.ndarray, random: np.ndarray) -> Estimate:
    """Estimate ``zrf = 1 - mean JS(p, p_random)``, the zero-retrain-forgetting score of the forget set.

    In ``[1 - ln 2, 1]``; 1 is a model that predicts like a randomly initialised one. The target is not 1 but
    the score of the retrained model with the same random one. Chundawat et al. (Bad Teacher, arXiv
    2205.08096).

    Args:
        model: logits of the unlearned or retrained model on the forget set, floats ``(n, classes)``, n >= 2.
        random: logits of a randomly initialised model on the same images, ``(n, classes)``.

    Raises:
        ValueError: as `output_distances` does.
    """
    return _mean(1 - js_per_image(probabilities(model), probabilities(random)))


def zrf_legacy(model: np.ndarray, random: np.ndarray) -> Estimate:
    """Estimate ``ssd.zrf_legacy``, the score with the two slips that many tables contain; read `zrf` instead.

    The divergences run from the mixture, ``KL(m || p)``, and their mean is taken over classes as well as over
    images, which hides most of the distance: ``1 - mean (KL(m || p) + KL(m || q)) / (2 classes)``.

    Args:
        model: logits of the unlearned or retrained model on the forget set, floats ``(n, classes)``, n >= 2.
        random: logits of a randomly initialised model on the same images, ``(n, classes)``.

    Raises:
        ValueError: as `output_distances` does.
    """
    p, q = probabilities(model), probabilities(random)
    both = kl_per_image(p, (p + q) / 2) + kl_per_image(q, (p + q) / 2)
    return _mean(1 - both / (2 * p.shape[1]))


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of logits, floats ``(n, classes)``, as float64.

    Raises:
        ValueError: if the shape or type is wrong, or a logit is not finite.
    """
    if logits.ndim != 2 or logits.dtype.kind != "f" or not np.isfinite(logits).all():
        raise ValueError(
            f"expected finite float logits of shape (n, classes), got {logits.dtype} {logits.shape}; pass "
            "the outputs of the model before the softmax, and check its weights"
        )
    return scipy.special.softmax(logits.astype(np.float64), axis=1)


def _mean(values: np.ndarray) -> Estimate:
    """Estimate the mean of values ``(n,)`` with the error of other images."""
    return Estimate(float(values.mean()), mean_error(values, None))
