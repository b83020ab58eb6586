"""A classifier of handwritten digits, trained on the spot: an extractor that needs no weights."""

from __future__ import annotations

import numpy as np
import torch

from gen_unlearn.image_sources import load_digits_images
from gen_unlearn.training.classifier import JudgeClassifier, JudgeFeatures, train_judge
from gen_unlearn.training.judge_config import JudgeConfig

DIGITS_CONFIG = JudgeConfig(epochs=10)
"""Enough for all but a few of the digits, in a few seconds."""


class DigitsFeatures(JudgeFeatures):
    """Extract the features of a classifier of scikit-learn's digits, from grey images of 8 x 8 pixels."""

    def __init__(self, model: JudgeClassifier) -> None:
        super().__init__(model, trained_on="scikit-learn's digits")

    def preprocess(self, image: np.ndarray) -> torch.Tensor:
        """Map a uint8 image ``(8, 8, 1)`` to values in [-1, 1].

        Raises:
            ValueError: the image is not uint8, or has another shape.
        """
        if image.shape != (8, 8, 1):
            raise ValueError(
                f"expected a grey image of shape (8, 8, 1) for the digits classifier, got {image.shape}; "
                "choose another extractor, this one has seen nothing but scikit-learn's digits"
            )
        return super().preprocess(image)


def digits_features(
    device: torch.device | str = "cpu", config: JudgeConfig = DIGITS_CONFIG
) -> DigitsFeatures:
    """Train a classifier on scikit-learn's 1,797 digits, and return its features, float32 ``(n, 64)``.

    It is trained on the CPU with one thread, so that on one machine the weights are always the same, bit for
    bit. Other processors may round differently; the digest tells.

    Args:
        device: where the features are computed.
        config: hyper-parameters of the classifier.
    """
    digits = load_digits_images()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images = digits.images[np.arange(len(digits.labels))]
        model = train_judge(images, digits.labels, len(digits.class_names), config, seed=0)
    finally:
        torch.set_num_threads(threads)
    return DigitsFeatures(model.to(device))
