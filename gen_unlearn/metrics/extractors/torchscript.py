"""Networks in TorchScript files, among them the SSCD copy detector."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gen_unlearn.metrics.extractors.module import ModuleFeatures, output_dim
from gen_unlearn.metrics.extractors.preprocessing import (
    IMAGENET_224,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
)
from gen_unlearn.metrics.weights import SSCD_DISC_MIXUP, WeightsFile, file_sha256, find_weights

SSCD_PREPROCESSING = Preprocessing(288, IMAGENET_MEAN, IMAGENET_STD, "bilinear")
"""The authors' "small 288": the shorter side becomes 288 pixels."""


def torchscript_features(
    path: Path, preprocessing: Preprocessing = IMAGENET_224, device: torch.device | str = "cpu"
) -> ModuleFeatures:
    """Load a TorchScript network that maps inputs ``(n, 3, h, w)`` to features ``(n, dim)``.

    A TorchScript file is a program: load only files that you trust.

    Args:
        path: the file.
        preprocessing: what the network was trained with.
        device: where the network runs.

    Raises:
        ValueError: there is no such file, it is no TorchScript, or it does not take these inputs.
    """
    if not path.is_file():
        raise ValueError(
            f"expected a TorchScript file, found none at {path}; name a local file with --weights FILE: "
            "nothing is downloaded"
        )
    module = _load(path, device)
    name = f"torchscript {path.name} (not comparable with Inception FID)"
    return ModuleFeatures(
        module, name, output_dim(module, preprocessing), preprocessing, weights_digest=file_sha256(path)
    )


def sscd_features(
    weights: Path | None = None, device: torch.device | str = "cpu", file: WeightsFile = SSCD_DISC_MIXUP
) -> ModuleFeatures:
    """Load SSCD, whose cosine similarities find copies of images (Pizzi et al. 2022).

    Features are float32 ``(n, 512)`` of length 1.

    Args:
        weights: the file; see `find_weights`.
        device: where the network runs.
        file: the published weights and their digest.

    Raises:
        ValueError: the weights are missing or damaged.
    """
    module = _UnitLength(_load(find_weights(file, weights), device))
    name = f"sscd ({file.name}; for cosine similarity, not comparable with Inception FID)"
    return ModuleFeatures(module.eval(), name, 512, SSCD_PREPROCESSING, weights_digest=file.sha256)


def _load(path: Path, device: torch.device | str) -> nn.Module:
    """Load a TorchScript file, in evaluation mode, or raise a ValueError that names it."""
    try:
        return torch.jit.load(str(path), map_location=torch.device(device)).eval()
    except RuntimeError as error:
        raise ValueError(
            f"expected a TorchScript file, got {path}, which torch.jit.load refuses; "
            "save the network with torch.jit.script(...).save(...)"
        ) from error


class _UnitLength(nn.Module):
    """Divide the output of a network by its Euclidean length; no change if the network did it already."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs ``(n, 3, h, w)`` to features ``(n, dim)`` of length 1."""
        return F.normalize(self.network(inputs), dim=1)
