"""Sample many images, each a function of its label and its index alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.denoising import Sampler
from gen_unlearn.pipelines.lora_choice import Composition
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.semiparametric import OnEmptyClass, SemiParametricDDPMPipeline
from gen_unlearn.repro import derive_seed, torch_generator
from gen_unlearn.shared_rows import shared_rows

GeneratorPipeline = SemiParametricDDPMPipeline | ClassConditionalDDPMPipeline | AdapterEnsembleDDPMPipeline

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


def sample_images(
    pipeline: GeneratorPipeline,
    labels: Sequence[int | None],
    indices: Sequence[int],
    config: SamplingConfig,
    on_empty_class: OnEmptyClass = "raise",
    description: str = "sample",
) -> np.ndarray:
    """Sample one image for each pair of a label and an index.

    An image depends on its label and its index, not on the batch it is computed in nor on the images
    beside it: the noise and the exemplars of image `index` of a class stay the same when other
    classes come or go. Several processes share the batches, see `shared_rows`, and all get every image.

    Args:
        pipeline: the generator.
        labels: class of each image; `None` for the null token or null label.
        indices: number of each image within its class.
        config: sampler, guidance, exemplars and seed.
        on_empty_class: see `SemiParametricDDPMPipeline`.
        description: shown before the progress bar.

    Returns:
        uint8 ``(images, height, width, channels)``.
    """
    if not labels or len(labels) != len(indices):
        raise ValueError(f"expected one index for each of some labels, got {len(labels)} and {len(indices)}")
    pipeline.set_progress_bar_config(disable=True)

    def batch(rows: slice) -> np.ndarray:
        return _sampled(pipeline, list(labels[rows]), list(indices[rows]), config, on_empty_class)

    return shared_rows(len(labels), config.batch_size, batch, description)


def _sampled(
    pipeline: GeneratorPipeline,
    labels: list[int | None],
    indices: list[int],
    config: SamplingConfig,
    on_empty_class: OnEmptyClass,
) -> np.ndarray:
    """Sample one batch."""
    pairs = list(zip(labels, indices, strict=True))
    noise = [torch_generator(config.seed, "sample", str(label), index) for label, index in pairs]
    exemplar_seed = [
        derive_seed(config.seed, "exemplars", index // config.images_per_draw) for index in indices
    ]
    if isinstance(pipeline, SemiParametricDDPMPipeline):
        return pipeline(
            labels,
            exemplars_per_class=config.exemplars_per_class,
            exemplar_seed=exemplar_seed,
            guidance_scale=config.guidance_scale,
            num_inference_steps=config.num_inference_steps,
            generator=noise,
            on_empty_class=on_empty_class,
            output_type="uint8",
            return_dict=False,
        )[0]
    if isinstance(pipeline, AdapterEnsembleDDPMPipeline):
        return pipeline(
            labels,
            composition=config.composition,
            adapters_per_image=config.adapters_per_image,
            adapter_seed=[derive_seed(config.seed, "adapter", str(label), index) for label, index in pairs],
            exemplars_per_class=config.exemplars_per_class,
            exemplar_seed=exemplar_seed,
            guidance_scale=config.guidance_scale,
            num_inference_steps=config.num_inference_steps,
            generator=noise,
            output_type="uint8",
            return_dict=False,
        )[0]
    return pipeline(
        labels,
        guidance_scale=config.guidance_scale,
        num_inference_steps=config.num_inference_steps,
        generator=noise,
        output_type="uint8",
        return_dict=False,
    )[0]
