"""Encoders of images: which there are, how one is built from its description, how it gets weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from gen_unlearn.models.pretrained import (
    ImageShape,
    TorchvisionEncoder,
    TransformersEncoder,
    published_at,
    transformers_settings,
    transformers_state,
    trial_dim,
)
from gen_unlearn.models.resnet import CifarResNet18, ConvEncoder, Encoder
from gen_unlearn.models.state_files import load_state, read_state

EncoderKind = Literal["cnn", "cifar-resnet18", "torchvision", "transformers"]

_SETTINGS: dict[EncoderKind, frozenset[str]] = {
    "cnn": frozenset({"width", "depth", "stem_stride", "weights"}),
    "cifar-resnet18": frozenset({"width", "weights"}),
    "torchvision": frozenset({"name", "weights"}),
    "transformers": frozenset({"weights"}),
}
"""Which settings an encoder of each kind has."""


@dataclass(frozen=True)
class EncoderConfig:
    """Choose an encoder.

    A setting that the kind does not have must be left at its default.

    Attributes:
        kind: ``"cnn"`` is a `ConvEncoder`, ``"cifar-resnet18"`` a `CifarResNet18`, ``"torchvision"`` a
            classifier of torchvision without its head, ``"transformers"`` a vision model of transformers.
        width: channels of the first stage, of "cnn" and "cifar-resnet18" (64 in the publication).
        depth: residual blocks per stage, from 0, of "cnn".
        stem_stride: stride of the first convolution, 1 or 2, of "cnn"; 2 costs about a quarter.
        name: of a classifier of torchvision, such as "resnet18", "vit_b_16" or "convnext_tiny".
        weights: where weights are loaded from. Of "transformers" the local folder that `save_pretrained`
            wrote, which must be given. Of "torchvision" a state dict with torchvision's own names, as
            .safetensors, .pth or .pt; of the others a state dict of the encoder itself, as .safetensors.
            `None` means fresh weights.

    Raises:
        ValueError: a setting is out of range, missing, or not of this kind.
    """

    kind: EncoderKind = "cnn"
    width: int = 32
    depth: int = 1
    stem_stride: int = 1
    name: str = ""
    weights: str | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.kind not in get_args(EncoderKind):
            raise ValueError(
                f"expected a kind of encoder, got {self.kind!r}; choose one of {', '.join(_SETTINGS)}"
            )
        for field in fields(self):
            if field.name not in _SETTINGS[self.kind] | {"kind"}:
                value = getattr(self, field.name)
                if value != field.default:
                    raise ValueError(
                        f"expected no {field.name} for an encoder of kind {self.kind}, got {value!r}; "
                        f"leave it out, or choose another kind"
                    )
        self._check_numbers()
        if self.kind == "torchvision" and not self.name:
            raise ValueError("expected the name of a classifier of torchvision, got none; set name=resnet18")
        self._check_weights()

    def _check_numbers(self) -> None:
        """Check the sizes of the network."""
        if self.width < 1 or self.depth < 0 or self.stem_stride not in (1, 2):
            raise ValueError(
                "expected width >= 1, depth >= 0 and stem_stride 1 or 2, got "
                f"width={self.width}, depth={self.depth}, stem_stride={self.stem_stride}; correct them"
            )

    def _check_weights(self) -> None:
        """Check that weights are named where they are needed, and in a format that can be read."""
        if self.kind == "transformers":
            if not self.weights:
                raise ValueError(
                    "expected weights, a local folder that transformers' save_pretrained wrote, got none; "
                    "get one from https://huggingface.co/models and name its folder: nothing is downloaded"
                )
            return
        suffixes = (".safetensors", ".pth", ".pt") if self.kind == "torchvision" else (".safetensors",)
        if self.weights is not None and Path(self.weights).suffix not in suffixes:
            raise ValueError(
                f"expected weights in a file that ends in {' or '.join(suffixes)}, got {self.weights!r}; "
                "name such a file, or convert this one"
            )


def encoder_architecture(config: EncoderConfig, image_shape: ImageShape) -> dict[str, Any]:
    """Describe an encoder such that `build_encoder` can build it without any other file.

    Args:
        config: the encoder. Of its weights only the configuration of a transformers model is read.
        image_shape: ``(channels, height, width)`` of the images, in pixels.

    Returns:
        JSON values: the settings of `config` but for the weights, ``"image_shape"`` as a list, and for
        transformers the model's configuration as ``"transformers"``.

    Raises:
        ValueError: the network does not exist, or does not take such images.
    """
    architecture: dict[str, Any] = {
        field.name: getattr(config, field.name) for field in fields(config) if field.name != "weights"
    }
    architecture["image_shape"] = list(_checked_shape(image_shape, config.kind))
    if config.kind == "transformers":
        assert config.weights is not None
        architecture["transformers"] = transformers_settings(Path(config.weights))
        with torch.device("meta"):
            build_encoder(architecture)  # tries such an image
    elif config.kind == "torchvision":
        with torch.random.fork_rng(devices=[]):
            trial = build_encoder(architecture).to("meta").eval()
        trial_dim(trial, image_shape, config.name)
    return architecture


def build_encoder(architecture: Mapping[str, Any]) -> Encoder:
    """Build an encoder with fresh weights, drawn from torch's global generator.

    Args:
        architecture: what `encoder_architecture` returned, as it is or back from JSON.

    Returns:
        A network, in training mode, that maps float images ``(batch, channels, height, width)`` in [-1, 1] to
        float features ``(batch, out_dim)``, with an attribute `out_dim`.

    Raises:
        ValueError: the description is incomplete, or the network does not exist.
    """
    kind = _checked_kind(architecture)
    shape = _checked_shape(architecture["image_shape"], kind)
    if kind == "cnn":
        return ConvEncoder(shape, *(architecture[name] for name in ("width", "depth", "stem_stride")))
    if kind == "cifar-resnet18":
        return CifarResNet18(shape[0], architecture["width"])
    if kind == "torchvision":
        return TorchvisionEncoder(architecture["name"])
    return TransformersEncoder(architecture["transformers"], shape).train()


def load_encoder_weights(encoder: nn.Module, config: EncoderConfig) -> None:
    """Load the weights that `config` names into an encoder, all of them and no others.

    The head in a file of torchvision's is dropped, as is a pooling layer or head in a folder of transformers.
    Files are read as tensors only, no code or object in them is run. Without `config.weights` nothing is
    done; nothing is ever downloaded.

    Args:
        encoder: of `build_encoder`, for the same `config`; after an error its weights are not to be used.
        config: names the weights.

    Raises:
        ValueError: there are no such weights, or they are not those of the encoder.
    """
    if config.weights is None:
        return
    path = Path(config.weights)
    expected = {"torchvision": TorchvisionEncoder, "transformers": TransformersEncoder}.get(
        config.kind, Encoder
    )
    if not isinstance(encoder, expected):
        raise ValueError(
            f"expected a {expected.__name__} for weights of kind {config.kind}, got "
            f"{type(encoder).__name__}; build the encoder from the same configuration"
        )
    if isinstance(encoder, TransformersEncoder):
        load_state(encoder.network, transformers_state(path), path)
    elif isinstance(encoder, TorchvisionEncoder):
        state = read_state(path, f"torchvision publishes them at {published_at(encoder.name)}")
        load_state(encoder.network, encoder.network_state(state), path)
    else:
        source = "save the state dict of a trained encoder there, or leave out weights to train one"
        load_state(encoder, read_state(path, source), path)


def _checked_kind(architecture: Mapping[str, Any]) -> EncoderKind:
    """Return the kind of an encoder, or raise a ValueError if its description is incomplete."""
    kind = architecture.get("kind")
    if kind not in _SETTINGS:
        raise ValueError(
            f"expected the description of an encoder of kind {' or '.join(_SETTINGS)}, got kind {kind!r}; "
            "take it from encoder_architecture"
        )
    missing = ({"image_shape", "transformers"} if kind == "transformers" else {"image_shape"}) | _SETTINGS[
        kind
    ]
    missing -= {"weights", *architecture}
    if missing:
        raise ValueError(
            f"expected the description of an encoder of kind {kind}, got one without "
            f"{', '.join(sorted(missing))}; take it from encoder_architecture"
        )
    return kind


def _checked_shape(image_shape: Sequence[int], kind: EncoderKind) -> ImageShape:
    """Return ``(channels, height, width)``, or raise a ValueError if an encoder takes no such images."""
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(
            f"expected an image shape (channels, height, width), got {tuple(image_shape)}; correct it"
        )
    channels, height, width = image_shape
    if kind in ("torchvision", "transformers") and channels not in (1, 3):
        raise ValueError(
            f"expected grey or RGB images for an encoder of kind {kind}, got {channels} channels; "
            "convert the images, or choose kind cnn"
        )
    return channels, height, width
