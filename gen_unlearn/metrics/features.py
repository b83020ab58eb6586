"""Image features, and the statistics that distances between image sets are computed from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch


class FeatureExtractor(Protocol):
    """Map images to feature vectors, each image on its own.

    Attributes:
        name: what the extractor is, and what its numbers may be compared with.
        dim: length of a feature vector.
        digest: SHA-256 over weights and preprocessing.
        resize: what `preprocess` does to the size of an image; ``"none"`` if it leaves it.
    """

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def digest(self) -> str: ...

    @property
    def resize(self) -> str: ...

    def preprocess(self, image: np.ndarray) -> torch.Tensor:
        """Map one uint8 image ``(height, width, channels)`` to the network's input, float32 ``(c, h, w)``."""
        ...

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map stacked inputs ``(n, c, h, w)``, on any device, to floats ``(n, dim)``."""
        ...


@dataclass(frozen=True)
class MeasurementProtocol:
    """Record how features were measured; only statistics with equal records may be compared.

    Attributes:
        extractor: name of the extractor.
        extractor_digest: digest of its weights and preprocessing.
        resize: how images were brought to the size that the network sees, or ``"none"``.
        input_shape: ``(channels, height, width)`` of what the network sees.
    """

    extractor: str
    extractor_digest: str
    resize: str
    input_shape: tuple[int, int, int]

    @classmethod
    def of(cls, extractor: FeatureExtractor, image: np.ndarray) -> MeasurementProtocol:
        """Return the record of measuring images like `image`, uint8 ``(height, width, channels)``."""
        channels, height, width = extractor.preprocess(image).shape
        return cls(extractor.name, extractor.digest, extractor.resize, (channels, height, width))

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a JSON-able dictionary."""
        return {**asdict(self), "input_shape": list(self.input_shape)}


@dataclass(frozen=True, eq=False)
class FeatureStats:
    """Hold the count, mean ``(d,)`` and unbiased covariance ``(d, d)`` of features, in float64."""

    n: int
    mean: np.ndarray
    cov: np.ndarray
    protocol: MeasurementProtocol

    @classmethod
    def from_features(
        cls, features: np.ndarray, protocol: MeasurementProtocol, smallest: int = 2
    ) -> FeatureStats:
        """Compute the statistics of features of shape ``(n, d)``, accumulated in float64.

        With ``smallest = 1`` a single row is taken too, with a covariance of 0: a part to merge with others.

        Raises:
            ValueError: if there are fewer than `smallest` rows, or a value is not finite.
        """
        if features.ndim != 2 or len(features) < smallest:
            raise ValueError(
                f"expected features of shape (n, d) with n >= {smallest}, got {features.shape}; "
                "a covariance needs at least two images"
            )
        if broken := int((~np.isfinite(features)).any(axis=1).sum()):
            raise ValueError(
                f"expected finite features, got {broken} of {len(features)} rows with NaN or infinity; "
                "check the images and the weights of the extractor"
            )
        centred = features.astype(np.float64)  # a copy, also of float64
        mean = centred.mean(axis=0)
        centred -= mean
        return cls(len(features), mean, centred.T @ centred / max(len(features) - 1, 1), protocol)

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
            f"{b.protocol.as_dict()}; extract both with the same extractor, resize and image size"
        )


def require_images(images: np.ndarray) -> None:
    """Raise a ValueError unless `images` is uint8 of shape ``(n, height, width, channels)`` with n >= 1."""
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
        raise ValueError(
            f"expected at least one image as uint8 of shape (n, height, width, channels), "
            f"got {images.dtype} of shape {images.shape}; quantise and stack the images first"
        )


def extract_features(extractor: FeatureExtractor, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Return the features of uint8 images ``(n, height, width, channels)`` as float32 ``(n, dim)``.

    Raises:
        ValueError: if the images are not uint8, or the extractor does not return ``(batch, dim)``.
    """
    require_images(images)
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    inputs = (torch.stack([extractor.preprocess(image) for image in batch]) for batch in batches)
    return np.concatenate([apply_extractor(extractor, batch) for batch in inputs])


def apply_extractor(extractor: FeatureExtractor, inputs: torch.Tensor) -> np.ndarray:
    """Return the features of preprocessed images ``(n, c, h, w)`` as float32 ``(n, dim)``.

    Raises:
        ValueError: if the extractor returns another shape.
    """
    with torch.inference_mode():
        features = extractor(inputs)
    if features.shape != (len(inputs), extractor.dim):
        raise ValueError(
            f"expected features of shape {(len(inputs), extractor.dim)} from {extractor.name}, "
            f"got {tuple(features.shape)}; correct its `dim`"
        )
    return features.float().cpu().numpy()
