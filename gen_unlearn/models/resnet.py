"""Convolutional encoders of small images, built from residual blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_SIDE = 4
"""A `ConvEncoder` halves its feature maps until their shorter side is at most this long."""


class Encoder(nn.Module):
    """Map float images ``(batch, channels, height, width)`` in [-1, 1] to features ``(batch, out_dim)``.

    In evaluation mode the features of an image do not depend on the other images of its batch.

    Attributes:
        out_dim: length of the feature vector.
    """

    out_dim: int


class ConvEncoder(Encoder):
    """Encode small images with few operations: 8 x 8 digits, or CIFAR on a CPU.

    A 3 x 3 stem is followed by stages, each a 3 x 3 convolution of stride 2 that doubles the channels (up to
    four times `width`) and `depth` residual blocks, until the shorter side is at most `SMALLEST_SIDE`; then
    comes the mean over all positions. Every convolution is followed by a batch normalisation. There is at
    least one stage; that of a stem which is small enough already has stride 1.

    Args:
        image_shape: ``(channels, height, width)`` of the images.
        width: channels of the stem.
        depth: residual blocks per stage, from 0.
        stem_stride: stride of the stem, 1 or 2.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], width: int = 32, depth: int = 1, stem_stride: int = 1
    ) -> None:
        super().__init__()
        channels, height, width_of_image = image_shape
        strides = _stage_strides(-(-min(height, width_of_image) // stem_stride))
        layers: list[nn.Module] = [_conv_norm_relu(channels, width, stem_stride)]
        inner = width
        for stride in strides:
            outer = min(2 * inner, 4 * width)
            layers.append(_conv_norm_relu(inner, outer, stride))
            layers += [ResidualBlock(outer, outer) for _ in range(depth)]
            inner = outer
        self.layers = nn.Sequential(*layers)
        self.out_dim = inner
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to features ``(batch, out_dim)``."""
        return self.layers(images).mean(dim=(2, 3))


class CifarResNet18(Encoder):
    """Encode small images with ResNet-18 (He et al. 2016) and the stem that is usual for CIFAR.

    The stem is a 3 x 3 convolution of stride 1 without max-pooling; four stages of two basic blocks follow,
    with `width` times 1, 2, 4 and 8 channels, and the mean over all positions.

    Args:
        channels: channels of the images.
        width: channels of the first stage; 64 in the publication.
    """

    def __init__(self, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_norm_relu(channels, width, stride=1)]
        inner = width
        for stage in range(4):
            outer = width * 2**stage
            layers += [ResidualBlock(inner, outer, 1 if stage == 0 else 2), ResidualBlock(outer, outer)]
            inner = outer
        self.layers = nn.Sequential(*layers)
        self.out_dim = inner
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to features ``(batch, out_dim)``."""
        return self.layers(images).mean(dim=(2, 3))


class HeConv2d(nn.Conv2d):
    """A convolution without a bias whose weights are drawn as in He et al. 2015, from the fan-out.

    It is the law of all convolutions of the encoders here, also where a part of one is drawn anew.
    """

    def reset_parameters(self) -> None:
        """Draw the weights: normal, of variance ``2 / (outer kernel_area)``."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


class ResidualBlock(nn.Module):
    """Add two 3 x 3 convolutions to the input: the basic block of He et al. 2016.

    Where the shape changes, the input passes a 1 x 1 convolution with a batch normalisation (their option B).

    Args:
        inner: channels of the input.
        outer: channels of the output.
        stride: stride of the first convolution.
    """

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _conv_norm_relu(inner, outer, stride)
        self.second = nn.Sequential(
            HeConv2d(outer, outer, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(outer)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(
                HeConv2d(inner, outer, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(outer)
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map ``(batch, inner, height, width)`` to ``(batch, outer, height / stride, width / stride)``."""
        return F.relu(self.second(self.first(features)) + self.shortcut(features))


def _conv_norm_relu(inner: int, outer: int, stride: int) -> nn.Sequential:
    """Return a 3 x 3 convolution with a batch normalisation and a ReLU behind it."""
    return nn.Sequential(
        HeConv2d(inner, outer, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outer),
        nn.ReLU(inplace=True),
    )


def _stage_strides(side: int) -> list[int]:
    """Return the stride of each stage for feature maps whose shorter side is `side`; at least one."""
    strides = []
    while side > SMALLEST_SIDE:
        strides.append(2)
        side = -(-side // 2)
    return strides or [1]


def _initialise(network: nn.Module) -> None:
    """Draw the convolutions once more, by the same law.

    So a seed gives the weights that it gave before the convolutions drew their own, for widths that are
    multiples of 16.
    """
    for module in network.modules():
        if isinstance(module, HeConv2d):
            module.reset_parameters()
