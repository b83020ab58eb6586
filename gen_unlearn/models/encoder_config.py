"""The settings of an encoder of images."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

EncoderKind = Literal["cnn", "cifar-resnet18", "torchvision", "transformers"]

SETTINGS: dict[EncoderKind, frozenset[str]] = {
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
                f"expected a kind of encoder, got {self.kind!r}; choose one of {', '.join(SETTINGS)}"
            )
        for field in fields(self):
            if field.name not in SETTINGS[self.kind] | {"kind"}:
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
