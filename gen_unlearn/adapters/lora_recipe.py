"""What decides the LoRA adapters of a generator, from its recipe."""

from __future__ import annotations

from collections.abc import Callable

from gen_unlearn.adapters.lora import LoraAdapters
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.routing import Keys
from gen_unlearn.config import RunConfig
from gen_unlearn.models.frozen_denoiser import FrozenDenoiser


def lora_recipe(
    config: RunConfig,
    keys: Keys,
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int],
    backbone: str,
    denoiser: Callable[[], FrozenDenoiser],
) -> EnsembleRecipe:
    """Return what decides the adapters of a run.

    Args:
        config: the recipe of an adapter ensemble that generates.
        keys: of its router.
        class_names: names of all classes.
        image_shape: height, width and channels of the images.
        backbone: digest of the frozen denoiser.
        denoiser: gives the denoiser, when it is needed.
    """
    adapters = config.model.adapters
    family = LoraAdapters(adapters.lora, backbone, image_shape, denoiser)
    return EnsembleRecipe(keys, family, adapters.neighbours, class_names, config.seed)
