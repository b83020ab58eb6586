"""The settings of an adapter ensemble that generates: its router, and its LoRA adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from gen_unlearn.adapters.families import PublicKeySource
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.release import ReleaseConfig
from gen_unlearn.adapters.routing import MOST_ADAPTERS
from gen_unlearn.models.encoder_config import EncoderConfig
from gen_unlearn.training.classification_config import ClassifierTrainingConfig

BackboneKind = Literal["class-conditional", "semi-parametric"]


@dataclass(frozen=True)
class RouterConfig:
    """What tells which adapters an image goes to: a frozen encoder that saw public images alone.

    Attributes:
        encoder: the encoder.
        training: how it is trained, with a linear head, to name the classes of the public core; unused where
            its weights are given.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    training: ClassifierTrainingConfig = field(
        default_factory=lambda: ClassifierTrainingConfig(images=15_000)
    )

    def __post_init__(self) -> None:
        if self.training.encoder_run is not None:
            raise ValueError(
                "expected no model.router.training.encoder_run: that encoder may have seen deletable images; "
                "name weights from elsewhere with model.router.encoder.weights"
            )
        if self.training.mixed_precision != "no" or self.training.log_with is not None:
            raise ValueError(
                "expected no mixed_precision or log_with in model.router.training: precision and trackers "
                "are those of the backbone's training"
            )


@dataclass(frozen=True)
class LoraEnsembleConfig:
    """The LoRA adapters of an ensemble.

    Attributes:
        count: adapters, 1 to 32767. A deletion costs less with more of them; each then has fewer images.
        neighbours: adapters that each image is routed to, 1 to `count`. A deletion costs about its square.
        keys: what the adapters' keys are made from, see `gen_unlearn.adapters.routing.public_keys`.
        lora: how the adapters look, and how they are trained.

    Raises:
        ValueError: a value outside what is said above.
    """

    count: int = 100
    neighbours: int = 1
    keys: PublicKeySource = "public-samples"
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_ADAPTERS:
            raise ValueError(f"expected adapters.count from 1 to {MOST_ADAPTERS}, got {self.count}")
        if not 1 <= self.neighbours <= self.count:
            raise ValueError(
                f"expected adapters.neighbours from 1 to adapters.count ({self.count}), got {self.neighbours}"
            )
        if self.keys not in get_args(PublicKeySource):
            choices = ", ".join(get_args(PublicKeySource))
            raise ValueError(f"expected adapters.keys out of {choices}, got {self.keys!r}")

    @property
    def release(self) -> ReleaseConfig:
        """When what changed is given away: at once. Only scores of classes can be held back."""
        return ReleaseConfig(minimum_batch=1, deadline_days=0.0)
