"""Sample many images, each a function of its label and its index alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.denoising import Sampler
from gen_unlearn.pipelines.semiparametric import OnEmptyClass, SemiParametricDDPMPipeline
from gen_unlearn.progress import progress_bar
from gen_unlearn.repro import derive_seed, torch_generator

GeneratorPipeline = SemiParametricDDPMPipeline | ClassConditionalDDPMPipeline


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
        seed: seed of the noise and of the exemplar draws.
    """

    sampler: Sampler = "ddim"
    num_inference_steps: int = 50
    guidance_scale: float = 1.3
    exemplars_per_class: int = 32
    images_per_draw: int = 25
    batch_size: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_inference_steps", "exemplars_per_class", "images_per_draw", "batch_size"):
            if self.__dict__[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {self.__dict__[name]}")


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
    classes come or go.

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
    batches: list[np.ndarray] = []
    with progress_bar(len(labels), description) as progress:
        for start in range(0, len(labels), config.batch_size):
            batch_labels = list(labels[start : start + config.batch_size])
            batch_indices = list(indices[start : start + config.batch_size])
            noise = [
                torch_generator(config.seed, "sample", str(label), index)
                for label, index in zip(batch_labels, batch_indices, strict=True)
            ]
            if isinstance(pipeline, SemiParametricDDPMPipeline):
                (images,) = pipeline(
                    batch_labels,
                    exemplars_per_class=config.exemplars_per_class,
                    exemplar_seed=[
                        derive_seed(config.seed, "exemplars", index // config.images_per_draw)
                        for index in batch_indices
                    ],
                    guidance_scale=config.guidance_scale,
                    num_inference_steps=config.num_inference_steps,
                    generator=noise,
                    on_empty_class=on_empty_class,
                    output_type="uint8",
                    return_dict=False,
                )
            else:
                (images,) = pipeline(
                    batch_labels,
                    guidance_scale=config.guidance_scale,
                    num_inference_steps=config.num_inference_steps,
                    generator=noise,
                    output_type="uint8",
                    return_dict=False,
                )
            batches.append(images)
            progress.update(len(batch_labels))
    return np.concatenate(batches)
