"""What no deletion changes of an adapter ensemble: a frozen encoder, its scale, and the public keys."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from gen_unlearn.adapters.records import quantise
from gen_unlearn.adapters.routing import Keys, KeySource
from gen_unlearn.models.encoders import build_encoder


class AdapterBackbone(ModelMixin, ConfigMixin):
    """A frozen encoder, always in evaluation mode, with what turns its features into codes and routes.

    All of it comes from public images alone.

    Args:
        architecture: of the encoder, see `gen_unlearn.models.encoders.build_encoder`.
        adapters: number of keys.
        key_source: what the keys are made from.

    Attributes:
        mean: of the features of public images, float32 ``(features,)``.
        deviation: of the features of public images, float32 ``(features,)``, above 0.
        key_codes: keys of the adapters, int16 ``(adapters, features)``.
    """

    mean: Tensor
    deviation: Tensor
    key_codes: Tensor

    @register_to_config
    def __init__(
        self,
        architecture: dict[str, Any],
        adapters: int,
        key_source: KeySource = "public-samples",  # noqa: ARG002, kept in the configuration
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(architecture)
        self.encoder.requires_grad_(False)
        features = self.encoder.out_dim
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.register_buffer("key_codes", torch.zeros(adapters, features, dtype=torch.int16))
        self.eval()

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002, never in training mode
        """Stay in evaluation mode: statistics of a normalisation that move would change every code."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to features ``(batch, features)``."""
        return self.encoder(images)

    def codes(self, inputs: Tensor) -> tuple[np.ndarray, int]:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to codes.

        Returns:
            int16 codes ``(batch, features)``, and how many of them are cut off.

        Raises:
            ValueError: a feature is not a finite number.
        """
        return quantise(self(inputs), self.mean, self.deviation)

    def public_keys(self) -> Keys:
        """Return the keys, on the CPU."""
        return Keys(self.key_codes.cpu().numpy(), self.config.key_source)
