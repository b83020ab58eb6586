"""The feature extractors by name, for the command line."""

from __future__ import annotations

from pathlib import Path

import torch

from gen_unlearn.metrics.extractors.preprocessing import Preprocessing
from gen_unlearn.metrics.features import FeatureExtractor

EXTRACTORS = (
    "inception-clean",
    "inception-legacy-tensorflow",
    "inception-legacy-pytorch",
    "inception-torchmetrics",
    "dinov2",
    "vision-model",
    "torchscript",
    "sscd",
    "digits",
    "random-conv",
)
"""Names that `load_extractor` knows."""


def load_extractor(
    name: str,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    preprocessing: Preprocessing | None = None,
) -> FeatureExtractor:
    """Load a feature extractor by name; nothing is downloaded.

    Args:
        name: one of `EXTRACTORS`.
        weights: a folder for dinov2 and vision-model, a file for torchscript: these need one. For inception
            and sscd the file, if it is not where `find_weights` looks. None for digits and random-conv.
        device: where the network runs.
        preprocessing: for torchscript and vision-model, instead of `IMAGENET_224` and the folder's own.

    Raises:
        ValueError: the name is unknown, or weights or preprocessing are missing, damaged or not wanted.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"expected an extractor among {', '.join(EXTRACTORS)}, got {name!r}")
    if preprocessing is not None and name not in ("torchscript", "vision-model"):
        raise ValueError(f"expected no preprocessing for {name}, which has its own; leave it out")
    if name in ("digits", "random-conv"):
        return _without_weights(name, weights, device)
    if name in ("torchscript", "vision-model", "dinov2"):
        return _from_users_weights(name, weights, device, preprocessing)
    return _from_published_weights(name, weights, device)


def _without_weights(name: str, weights: Path | None, device: torch.device | str) -> FeatureExtractor:
    """Return an extractor that makes its weights itself."""
    if weights is not None:
        raise ValueError(
            f"expected no weights for {name}, which makes its own, got {weights}; leave them out"
        )
    if name == "digits":
        from gen_unlearn.metrics.extractors.digits import digits_features

        return digits_features(device)
    from gen_unlearn.metrics.extractors.random_conv import RandomConvFeatures

    return RandomConvFeatures(device=device)


def _from_users_weights(
    name: str, weights: Path | None, device: torch.device | str, preprocessing: Preprocessing | None
) -> FeatureExtractor:
    """Return an extractor from a file or folder that the user names."""
    if weights is None:
        what = "file" if name == "torchscript" else "folder"
        raise ValueError(f"expected a {what} of weights for {name}, got none; name it with --weights")
    if name == "torchscript":
        from gen_unlearn.metrics.extractors.preprocessing import IMAGENET_224
        from gen_unlearn.metrics.extractors.torchscript import torchscript_features

        return torchscript_features(weights, preprocessing or IMAGENET_224, device)
    from gen_unlearn.metrics.extractors.vision_model import dinov2_features, vision_model_features

    return (
        dinov2_features(weights, device)
        if name == "dinov2"
        else vision_model_features(weights, preprocessing, device)
    )


def _from_published_weights(name: str, weights: Path | None, device: torch.device | str) -> FeatureExtractor:
    """Return an extractor of a published network."""
    if name == "sscd":
        from gen_unlearn.metrics.extractors.torchscript import sscd_features

        return sscd_features(weights, device)
    from gen_unlearn.metrics.extractors import inception

    if name == "inception-torchmetrics":
        return inception.torchmetrics_features(weights, device)
    if name == "inception-clean":
        return inception.clean_fid_features("clean", weights, device)
    if name == "inception-legacy-tensorflow":
        return inception.clean_fid_features("legacy_tensorflow", weights, device)
    return inception.clean_fid_features("legacy_pytorch", weights, device)
