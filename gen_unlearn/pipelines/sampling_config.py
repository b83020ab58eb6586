"""The settings of how images are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from gen_unlearn.adapters.lora_config import Composition

Sampler = Literal["ddpm", "ddim", "dpm-solver++"]

_AT_LEAST_ONE = (
    "num_inference_steps",
    "exemplars_per_class",
    "images_per_draw",
    "batch_size",
    "adapters_per_image",
)


@dataclass(frozen=True)
class SamplingConfig:
    """How images are sampled.

    Attributes:
        sampler: ``"ddpm"``, ``"ddim"`` or ``"dpm-solver++"``.
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance; 1 turns it off.
        exemplars_per_class: exemplars that each image is conditioned on.
        images_per_draw: images of a class that share one draw of exemplars.
        batch_size: images denoised at once; does not change them.
        seed: seed of the noise, of the exemplar draws and of the choice of adapters.
        composition: how adapters of an ensemble share in an image: ``"route"``, ``"mean"`` or ``"mixture"``.
        adapters_per_image: adapters of an image, of a mean or a mixture.
    """

    sampler: Sampler = "ddim"
    num_inference_steps: int = 50
    guidance_scale: float = 1.3
    exemplars_per_class: int = 32
    images_per_draw: int = 25
    batch_size: int = 250
    seed: int = 0
    composition: Composition = "route"
    adapters_per_image: int = 2

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            if self.__dict__[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {self.__dict__[name]}")
        if self.composition not in get_args(Composition):
            raise ValueError(
                f"expected composition {' or '.join(get_args(Composition))}, got {self.composition!r}"
            )
