"""Sample many images, each a function of its label and its index alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.pipelines.semiparametric import OnEmptyClass, SemiParametricDDPMPipeline
from gen_unlearn.repro import derive_seed, torch_generator
from gen_unlearn.shared_rows import shared_rows

GeneratorPipeline = SemiParametricDDPMPipeline | ClassConditionalDDPMPipeline | AdapterEnsembleDDPMPipeline


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
