"""Image features, and the statistics that distances between image sets are computed from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import digest_arrays, digest_bytes, torch_generator


class FeatureExtractor(Protocol):
    """Map images to feature vectors.

    `name` says what the extractor is and what its numbers may be compared with; `dim` is the length of a
    vector; `digest` is a SHA-256 over weights and preprocessing. A call maps uint8 images of shape
    ``(n, height, width, channels)`` to floats of shape ``(n, dim)``, each image on its own.
    """

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def digest(self) -> str: ...

    def __call__(self, images: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class MeasurementProtocol:
    """Record how features were measured; only statistics with equal records may be compared.

    `image_shape` is ``(height, width, channels)`` before any resizing; `resize` describes what happens to
    it inside the extractor, or is ``"none"``.
    """

    extractor: str
    extractor_digest: str
    image_shape: tuple[int, int, int]
    resize: str = "none"

    @classmethod
    def of(cls, extractor: FeatureExtractor, images: np.ndarray, resize: str = "none") -> MeasurementProtocol:
        """Return the record of measuring `images`, uint8 ``(n, height, width, channels)``."""
        require_images(images)
        height, width, channels = images.shape[1:]
        return cls(extractor.name, extractor.digest, (height, width, channels), resize)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a JSON-able dictionary."""
        return {**asdict(self), "image_shape": list(self.image_shape)}


@dataclass(frozen=True, eq=False)
class FeatureStats:
    """Hold the count, mean ``(d,)`` and unbiased covariance ``(d, d)`` of features, in float64."""

    n: int
    mean: np.ndarray
    cov: np.ndarray
    protocol: MeasurementProtocol

    @classmethod
    def from_features(cls, features: np.ndarray, protocol: MeasurementProtocol) -> FeatureStats:
        """Compute the statistics of features of shape ``(n, d)``, accumulated in float64.

        Raises:
            ValueError: if there are fewer than two rows, or a value is not finite.
        """
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(
                f"expected features of shape (n, d) with n >= 2, got {features.shape}; "
                "a covariance needs at least two images"
            )
        if broken := int((~np.isfinite(features)).any(axis=1).sum()):
            raise ValueError(
                f"expected finite features, got {broken} of {len(features)} rows with NaN or infinity; "
                "check the images and the weights of the extractor"
            )
        features = features.astype(np.float64)
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred / (len(features) - 1), protocol)

    def merge(self, other: FeatureStats) -> FeatureStats:
        """Return the statistics of both sets of images together, exactly (Chan et al. 1979).

        Raises:
            ValueError: if the two were measured under different protocols.
        """
        require_same_protocol(self, other)
        n = self.n + other.n
        step = other.mean - self.mean
        scatter = (self.n - 1) * self.cov + (other.n - 1) * other.cov
        scatter += (self.n * other.n / n) * np.outer(step, step)
        return FeatureStats(n, self.mean + (other.n / n) * step, scatter / (n - 1), self.protocol)


def require_same_protocol(a: FeatureStats, b: FeatureStats) -> None:
    """Raise a ValueError that names both protocols unless they are equal."""
    if a.protocol != b.protocol:
        raise ValueError(
            f"expected features measured under one protocol, got {a.protocol.as_dict()} and "
            f"{b.protocol.as_dict()}; extract both with the same extractor, image shape and resize"
        )


def require_images(images: np.ndarray) -> None:
    """Raise a ValueError unless `images` is uint8 of shape ``(n, height, width, channels)`` with n >= 1."""
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
        raise ValueError(
            f"expected at least one image as uint8 of shape (n, height, width, channels), "
            f"got {images.dtype} of shape {images.shape}; quantise and stack the images first"
        )


def extract_features(extractor: FeatureExtractor, images: np.ndarray, batch_size: int = 512) -> np.ndarray:
    """Return the features of uint8 images ``(n, height, width, channels)`` as float64 ``(n, dim)``.

    Raises:
        ValueError: if the images are not uint8, or the extractor does not return ``(batch, dim)``.
    """
    require_images(images)
    features = np.empty((len(images), extractor.dim))
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        result = extractor(batch)
        if result.shape != (len(batch), extractor.dim):
            raise ValueError(
                f"expected features of shape {(len(batch), extractor.dim)} from {extractor.name}, "
                f"got {result.shape}; correct its `dim`"
            )
        features[start : start + len(batch)] = result
    return features


class RandomConvFeatures:
    """Extract features with a small convolutional network of fixed random weights.

    For tests and offline checks: it tells distributions apart, but its distances have no perceptual
    meaning. Takes one or three channels (grey is repeated to three) and images of at least 8 x 8 pixels.
    """

    def __init__(self, seed: int = 0, dim: int = 64) -> None:
        generator = torch_generator("random-conv", seed)
        shapes = [(32, 3, 3, 3), (32, 32, 3, 3), (dim, 32, 3, 3)]
        self._kernels = [
            torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:])) for shape in shapes
        ]
        self.dim = dim
        self.name = f"random-conv-{dim} (seed {seed}, untrained; comparable only with itself)"
        weights = digest_arrays(*(kernel.numpy() for kernel in self._kernels))
        self.digest = digest_bytes(b"pixels/127.5-1; 3x (conv, relu); mean", weights.encode())

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return float32 features of shape ``(n, dim)``.

        Raises:
            ValueError: if the images are not uint8, have another number of channels, or are too small.
        """
        hidden = to_model_input(images)
        if hidden.shape[1] not in (1, 3) or min(hidden.shape[2:]) < 8:
            raise ValueError(
                f"expected one or three channels and at least 8 x 8 pixels, got images of shape "
                f"{images.shape[1:]}; convert them to grey or RGB first"
            )
        hidden = hidden.expand(-1, 3, -1, -1)
        for stride, kernel in zip((1, 2, 2), self._kernels, strict=True):
            hidden = F.relu(F.conv2d(hidden, kernel, stride=stride, padding=1))
        return hidden.mean(dim=(2, 3)).numpy()
