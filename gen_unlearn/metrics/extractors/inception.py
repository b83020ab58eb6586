"""Inception-V3 as clean-fid and as torchmetrics use it, for distances that compare with published ones.

The published FID differs between them by its resize more than by the network: see Parmar et al. 2022.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import accelerate.utils
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from gen_unlearn.metrics.extractors.module import ModuleFeatures
from gen_unlearn.metrics.extractors.preprocessing import as_rgb
from gen_unlearn.metrics.weights import (
    INCEPTION_PYTORCH,
    INCEPTION_TORCH_FIDELITY,
    INCEPTION_TORCHSCRIPT,
    WeightsFile,
    find_weights,
)

CleanFidMode = Literal["clean", "legacy_tensorflow", "legacy_pytorch"]
"""Modes of clean-fid: the resize, and the network that goes with it."""

DIM = 2048
"""Length of the features: the last average pooling."""

_SIZE = (299, 299)

_RESIZE = {
    "clean": "pillow bicubic to 299 x 299, in float",
    "legacy_tensorflow": "TensorFlow 1 bilinear to 299 x 299, in the network",
    "legacy_pytorch": "torch bilinear to 299 x 299, not antialiased, in float",
}


def clean_fid_features(
    mode: CleanFidMode,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    file: WeightsFile | None = None,
) -> ModuleFeatures:
    """Load Inception-V3 as clean-fid uses it: the features of `cleanfid.fid.compute_fid(mode=...)`.

    Args:
        mode: mode of clean-fid; "clean" for new work.
        weights: the file; see `find_weights`.
        device: where the network runs.
        file: the published weights and their digest; without it, those of the mode.

    Raises:
        ValueError: the weights are missing or damaged.
    """
    if file is None:
        file = INCEPTION_PYTORCH if mode == "legacy_pytorch" else INCEPTION_TORCHSCRIPT
    path = find_weights(file, weights)
    module = _pytorch_inception(path) if mode == "legacy_pytorch" else _torchscript_inception(path, mode)
    name = f"inception-v3-{DIM} (clean-fid, mode {mode})"
    return ModuleFeatures(
        module.to(device).eval(), name, DIM, CleanFidPreprocessing(mode), weights_digest=file.sha256
    )


def torchmetrics_features(
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    file: WeightsFile = INCEPTION_TORCH_FIDELITY,
) -> ModuleFeatures:
    """Load Inception-V3 as torchmetrics uses it: the features of its `FrechetInceptionDistance()`.

    Args:
        weights: the file; see `find_weights`.
        device: where the network runs.
        file: the published weights and their digest.

    Raises:
        ValueError: the weights are missing or damaged.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    path = find_weights(file, weights)  # torch-fidelity unpickles it: never load it without the digest
    with torch.random.fork_rng(devices=[]):
        network = NoTrainInceptionV3("inception-v3-compat", [str(DIM)], str(path), antialias=True)
    name = f"inception-v3-{DIM} (torchmetrics, antialiased)"
    return ModuleFeatures(
        _Quantised(network).to(device).eval(), name, DIM, _AsStored(), weights_digest=file.sha256
    )


@dataclass(frozen=True)
class CleanFidPreprocessing:
    """Resize as clean-fid does; values lie in [0, 255], for legacy_pytorch in [-1, 1].

    Attributes:
        mode: mode of clean-fid.
    """

    mode: CleanFidMode

    @property
    def resize(self) -> str:
        """The filter and the size."""
        return _RESIZE[self.mode]

    @property
    def description(self) -> str:
        """The mode."""
        return f"clean-fid {self.mode}"

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Map a uint8 image, grey or RGB, to a float32 tensor ``(3, h, w)``."""
        channels = as_rgb(image).transpose(2, 0, 1).astype(np.float32, order="C")
        if self.mode == "clean":
            resized = np.empty((3, *_SIZE), dtype=np.float32)
            for channel, values in zip(resized, channels, strict=True):
                picture = Image.fromarray(values).resize(_SIZE, Image.Resampling.BICUBIC)
                np.clip(np.asarray(picture), 0, 255, out=channel)
            return torch.from_numpy(resized)
        if self.mode == "legacy_tensorflow":
            return torch.from_numpy(channels)
        values = F.interpolate(torch.from_numpy(channels)[None], _SIZE, mode="bilinear")[0]
        return 2 * (values.clip(0, 255) / 255) - 1


@dataclass(frozen=True)
class _AsStored:
    """Keep the pixels, values in [0, 255]: the network resizes."""

    resize: str = "torch bilinear to 299 x 299, antialiased, in the network"
    description: str = "torchmetrics antialias=True"

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Map a uint8 image, grey or RGB, to a float32 tensor ``(3, height, width)``."""
        return torch.from_numpy(np.ascontiguousarray(as_rgb(image).transpose(2, 0, 1))).float()


class _Quantised(nn.Module):
    """Hand a network its inputs as uint8; they are whole numbers already."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map whole numbers in [0, 255] of shape ``(n, 3, h, w)`` to features ``(n, 2048)``."""
        return self.network(inputs.to(torch.uint8))


def _torchscript_inception(path: Path, mode: CleanFidMode) -> nn.Module:
    """Return clean-fid's wrapper of the TorchScript network; it takes a folder and knows the file's name."""
    from cleanfid.inception_torchscript import InceptionV3W

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, INCEPTION_TORCHSCRIPT.name).symlink_to(path.resolve())
        return InceptionV3W(folder, download=False, resize_inside=mode == "legacy_tensorflow")


def _pytorch_inception(path: Path) -> nn.Module:
    """Return clean-fid's PyTorch network with weights from a file; its own constructor downloads them."""
    from cleanfid import inception_pytorch as fid
    from torchvision.models import inception_v3

    with torch.random.fork_rng(devices=[]):
        network = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
        network.Mixed_5b = fid.FIDInceptionA(192, pool_features=32)
        network.Mixed_5c = fid.FIDInceptionA(256, pool_features=64)
        network.Mixed_5d = fid.FIDInceptionA(288, pool_features=64)
        network.Mixed_6b = fid.FIDInceptionC(768, channels_7x7=128)
        network.Mixed_6c = fid.FIDInceptionC(768, channels_7x7=160)
        network.Mixed_6d = fid.FIDInceptionC(768, channels_7x7=160)
        network.Mixed_6e = fid.FIDInceptionC(768, channels_7x7=192)
        network.Mixed_7b = fid.FIDInceptionE_1(1280)
        network.Mixed_7c = fid.FIDInceptionE_2(2048)
    network.load_state_dict(accelerate.utils.load(path, map_location="cpu"))  # tensors only, no objects
    network.fc = nn.Identity()
    return network
