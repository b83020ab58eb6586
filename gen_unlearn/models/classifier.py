"""Classifiers: the network of the semi-parametric one, and its parametric reference."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from gen_unlearn.models.classifier_config import ClassifierConfig
from gen_unlearn.models.encoders import build_encoder, encoder_architecture, load_encoder_weights

_FIRST_SCALE = 2.0


class SemiParametricClassifier(ModelMixin, ConfigMixin):
    """Encode images to what votes: keys of exemplars, and queries and a gate of the images to classify.

    The keys of each expert are scaled to length ``sqrt(key_dim)``, so that they are kept with a fixed
    precision. The network knows no classes: they come with the exemplars.
    """

    @register_to_config
    def __init__(self, architecture: dict[str, Any], key_dim: int = 64, experts: int = 1) -> None:
        super().__init__()
        self.encoder = build_encoder(architecture)
        self.to_query = nn.Linear(self.encoder.out_dim, experts * key_dim, bias=False)
        self.to_key = nn.Linear(self.encoder.out_dim, experts * key_dim, bias=False)
        self.gate = nn.Linear(self.encoder.out_dim, experts).requires_grad_(experts > 1)
        with torch.no_grad():  # At first an image asks for what is like it: from there training is quick.
            self.to_query.weight.copy_(self.to_key.weight * _FIRST_SCALE)

    def queries(self, features: Tensor) -> Tensor:
        """Map features ``(batch, features)`` to queries ``(batch, experts, key_dim)``."""
        return self.to_query(features).unflatten(1, (self.config.experts, self.config.key_dim))

    def keys(self, features: Tensor) -> Tensor:
        """Map features ``(batch, features)`` to keys ``(batch, experts, key_dim)`` of equal lengths."""
        keys = self.to_key(features).unflatten(1, (self.config.experts, self.config.key_dim))
        return F.normalize(keys.float(), dim=2) * math.sqrt(self.config.key_dim)

    def experts(self, features: Tensor) -> Tensor:
        """Map features ``(batch, features)`` to log-probabilities of the experts, ``(batch, experts)``."""
        return self.gate(features).float().log_softmax(dim=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to queries and gate."""
        features = self.encoder(images)
        return self.queries(features), self.experts(features)


class ParametricClassifier(ModelMixin, ConfigMixin):
    """The reference: the same encoder, with a linear layer that has the classes in its weights."""

    @register_to_config
    def __init__(self, architecture: dict[str, Any], num_classes: int) -> None:
        super().__init__()
        self.encoder = build_encoder(architecture)
        self.head = nn.Linear(self.encoder.out_dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to logits ``(batch, num_classes)``."""
        return self.head(self.encoder(images))


ClassifierNetwork = SemiParametricClassifier | ParametricClassifier


def build_classifier(
    config: ClassifierConfig, image_shape: tuple[int, int, int], num_classes: int
) -> ClassifierNetwork:
    """Build a classifier with fresh weights, apart from an encoder whose weights the recipe names.

    Args:
        config: what to build; the network of an adapter ensemble is an
            `gen_unlearn.models.backbone.AdapterBackbone` and not built here.
        image_shape: ``(height, width, channels)`` of the images.
        num_classes: number of classes.

    Raises:
        ValueError: the encoder cannot take such images, or its weights are missing or do not fit.
    """
    height, width, channels = image_shape
    architecture = encoder_architecture(config.encoder, (channels, height, width))
    model: ClassifierNetwork
    if config.kind == "parametric":
        model = ParametricClassifier(architecture, num_classes)
    else:
        model = SemiParametricClassifier(architecture, config.key_dim, config.experts)
    load_encoder_weights(model.encoder, config.encoder)
    return model
