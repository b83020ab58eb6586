"""The settings of the network of a classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gen_unlearn.adapters.families import AdaptersConfig
from gen_unlearn.models.encoder_config import EncoderConfig


@dataclass(frozen=True)
class ClassifierConfig:
    """What a classifier is made of.

    Attributes:
        kind: ``"semi-parametric"``, whose prediction is a vote of exemplars; ``"parametric"``, the same
            encoder with a linear layer; or ``"adapter-ensemble"``, many small heads on the frozen encoder, of
            which each image asks a few.
        encoder: the network that images pass.
        key_dim: length of keys and queries of one expert.
        experts: attention maps, each with keys and queries of its own, mixed by a gate.
        exemplar_size: side in pixels of the pictures of exemplars that are kept, to show and to search them;
            `None` keeps images as they are classified. Predictions need keys alone.
        adapters: the heads of an adapter ensemble; unused otherwise.
    """

    kind: Literal["semi-parametric", "parametric", "adapter-ensemble"] = "semi-parametric"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    key_dim: int = 64
    experts: int = 1
    exemplar_size: int | None = None
    adapters: AdaptersConfig = field(default_factory=AdaptersConfig)

    def __post_init__(self) -> None:
        if self.key_dim < 1 or self.experts < 1:
            raise ValueError(
                f"expected key_dim and experts of at least 1, got {self.key_dim} and {self.experts}"
            )
        if self.exemplar_size is not None and self.exemplar_size < 1:
            raise ValueError(f"expected exemplar_size of at least 1 pixel, got {self.exemplar_size}")
