"""Encoders of images: which there are, how one is built from its description, how it gets weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gen_unlearn.models.encoder_config import SETTINGS, EncoderConfig, EncoderKind
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
    if kind not in SETTINGS:
        raise ValueError(
            f"expected the description of an encoder of kind {' or '.join(SETTINGS)}, got kind {kind!r}; "
            "take it from encoder_architecture"
        )
    missing = ({"image_shape", "transformers"} if kind == "transformers" else {"image_shape"}) | SETTINGS[
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
