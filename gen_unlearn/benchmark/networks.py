"""The networks that the classification benchmark trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen_unlearn.models.resnet import CifarResNet18
from gen_unlearn.repro import derive_seed

_LARGEST_GROUPS = 8


@dataclass(frozen=True)
class NetworkConfig:
    """What a classifier of the benchmark is made of.

    Attributes:
        kind: ``"mlp"``, one hidden layer; ``"cnn"``, a few convolutions with group normalisation, for a CPU;
            ``"resnet18"``, ResNet-18 (He et al. 2016) with the CIFAR stem and batch normalisation.
        width: hidden units of the mlp, channels of the stem of the others.
        depth: convolutions of stride 2 of the cnn, each of which doubles the channels; unused otherwise.
        mean: subtracted from pixels in [0, 1], one value or one per channel.
        std: what the result is divided by, above 0, one value or one per channel.
    """

    kind: Literal["mlp", "cnn", "resnet18"] = "mlp"
    width: int = 64
    depth: int = 2
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.kind not in ("mlp", "cnn", "resnet18"):
            raise ValueError(f"expected kind to be mlp, cnn or resnet18, got {self.kind!r}")
        if self.width < 1 or self.depth < 1:
            raise ValueError(f"expected width and depth of at least 1, got {self.width} and {self.depth}")
        if len(self.mean) != len(self.std) or not self.std or min(self.std) <= 0:
            raise ValueError(
                f"expected as many values of mean as of std, all std above 0, got {self.mean} and {self.std}"
            )


class Normalise(nn.Module):
    """Map images in [-1, 1] to ``((image + 1) / 2 - mean) / std``.

    Args:
        mean: one value, or one per channel, for pixels in [0, 1].
        std: one value, or one per channel, above 0.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self._mean, self._std = mean, std
        self.register_buffer("scale", torch.empty(len(std), 1, 1), persistent=False)
        self.register_buffer("shift", torch.empty(len(std), 1, 1), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Restore the two constants."""
        mean = torch.tensor(self._mean, dtype=torch.float64).reshape(-1, 1, 1)
        std = torch.tensor(self._std, dtype=torch.float64).reshape(-1, 1, 1)
        self.get_buffer("scale").copy_(0.5 / std)
        self.get_buffer("shift").copy_((0.5 - mean) / std)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to the same shape."""
        return images * self.get_buffer("scale") + self.get_buffer("shift")


class BenchmarkNetwork(nn.Module, ABC):
    """Map float images ``(batch, channels, height, width)`` in [-1, 1] to logits ``(batch, classes)``.

    Attributes:
        config: what the network is made of.
        block_names: names of the modules that hold its weights, in the order of the data, the head last.
    """

    config: NetworkConfig
    block_names: tuple[str, ...]

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to the head's input."""


class MlpClassifier(BenchmarkNetwork):
    """Classify images with one hidden layer of ReLU units, all pixels in.

    Weights and biases are uniform in ``±1 / sqrt(fan_in)``.

    Args:
        config: the hidden units and the normalisation.
        image_shape: ``(channels, height, width)`` of the images.
        classes: number of classes.
    """

    def __init__(self, config: NetworkConfig, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.config, self.block_names = config, ("hidden", "head")
        self.normalise = Normalise(config.mean, config.std)
        self.hidden = nn.Linear(channels * height * width, config.width)
        self.head = nn.Linear(config.width, classes)

    def features(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to the head's input."""
        return F.relu(self.hidden(self.normalise(images).flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to logits ``(batch, classes)``."""
        return self.head(self.features(images))


class CnnClassifier(BenchmarkNetwork):
    """Classify small images with 3 x 3 convolutions, group normalisation and the mean over all positions.

    A stem of stride 1 is followed by `config.depth` convolutions of stride 2. No image depends on its batch.

    Args:
        config: the channels, the convolutions of stride 2 and the normalisation.
        image_shape: ``(channels, height, width)`` of the images.
        classes: number of classes.
    """

    def __init__(self, config: NetworkConfig, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        widths = [image_shape[0], *(config.width * 2**stage for stage in range(config.depth + 1))]
        self.config = config
        self.normalise = Normalise(config.mean, config.std)
        self.layers = nn.Sequential(
            *(
                _conv_group_relu(inner, outer, stride=2 if stage else 1)
                for stage, (inner, outer) in enumerate(pairwise(widths))
            )
        )
        self.head = nn.Linear(widths[-1], classes)
        self.block_names = (*(f"layers.{stage}" for stage in range(len(self.layers))), "head")

    def features(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to the head's input."""
        return self.layers(self.normalise(images)).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to logits ``(batch, classes)``."""
        return self.head(self.features(images))


class ResNetClassifier(BenchmarkNetwork):
    """Classify small images with `gen_unlearn.models.resnet.CifarResNet18` and a linear head.

    Args:
        config: the channels of the stem and the normalisation.
        image_shape: ``(channels, height, width)`` of the images.
        classes: number of classes.
    """

    def __init__(self, config: NetworkConfig, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.config = config
        self.normalise = Normalise(config.mean, config.std)
        self.encoder = CifarResNet18(image_shape[0], config.width)
        self.head = nn.Linear(self.encoder.out_dim, classes)
        self.block_names = (*(f"encoder.layers.{place}" for place in range(len(self.encoder.layers))), "head")

    def features(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to the head's input."""
        return self.encoder(self.normalise(images))

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to logits ``(batch, classes)``."""
        return self.head(self.features(images))


def build_network(
    config: NetworkConfig, image_shape: tuple[int, int, int], classes: int, seed: int
) -> BenchmarkNetwork:
    """Build a network on the CPU with fresh weights; the global random state is left as it was.

    Args:
        config: what to build.
        image_shape: ``(channels, height, width)`` of the images.
        classes: number of classes, from 2.
        seed: the same seed gives the same weights.

    Raises:
        ValueError: fewer than 2 classes, or a normalisation for another number of channels.
    """
    if classes < 2:
        raise ValueError(f"expected at least 2 classes, got {classes}")
    if len(config.mean) not in (1, image_shape[0]):
        raise ValueError(
            f"expected mean and std of 1 value or one for each of the {image_shape[0]} channels, "
            f"got {config.mean} and {config.std}"
        )
    kinds: dict[str, type[MlpClassifier | CnnClassifier | ResNetClassifier]] = {
        "mlp": MlpClassifier,
        "cnn": CnnClassifier,
        "resnet18": ResNetClassifier,
    }
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(derive_seed(seed, "network"))
        return kinds[config.kind](config, image_shape, classes)


def blocks(network: nn.Module) -> list[str]:
    """Return the names of the modules that hold the weights of `network`, in order, the head last.

    Every parameter is in one of them, and none in two.

    Raises:
        ValueError: a network that `build_network` did not make.
    """
    if not isinstance(network, BenchmarkNetwork):
        raise ValueError(
            f"expected a network of build_network, got {type(network).__name__}; list its modules by hand"
        )
    return list(network.block_names)


def _conv_group_relu(inner: int, outer: int, stride: int) -> nn.Sequential:
    """Return a 3 x 3 convolution with a group normalisation and a ReLU behind it."""
    groups = next(count for count in range(min(_LARGEST_GROUPS, outer), 0, -1) if outer % count == 0)
    return nn.Sequential(
        nn.Conv2d(inner, outer, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(groups, outer),
        nn.ReLU(),
    )
