"""Make and load the pipeline of an adapter ensemble that generates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from diffusers import DDPMScheduler

from gen_unlearn.adapters.adapter_folder import AdapterFolder
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.serving import ServedAdapters, count_members
from gen_unlearn.config import RunConfig
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.backbone_checkpoints import load_backbone_checkpoint
from gen_unlearn.models.frozen_denoiser import FrozenDenoiser
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.quiet_loading import quiet_loading
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.processes import process_state
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.run_paths import RunPaths
from gen_unlearn.shards import Rows


def lora_pipeline(
    config: RunConfig, denoiser: FrozenDenoiser, router: AdapterBackbone, class_names: Sequence[str]
) -> AdapterEnsembleDDPMPipeline:
    """Return the pipeline of a recipe, without adapters.

    Args:
        config: the recipe of an adapter ensemble.
        denoiser: the backbone.
        router: tells which adapters an image goes to.
        class_names: names of all classes.
    """
    lora, sampler = config.model.adapters.lora, build_sampler(config.sampling.sampler, denoiser.noise)
    return AdapterEnsembleDDPMPipeline(
        denoiser.network,
        sampler,
        router,
        class_names=list(class_names),
        rank=lora.rank,
        alpha=lora.alpha,
        targets=list(lora.targets),
        vae=denoiser.vae,
        prompts=denoiser.prompts,
    )


def named_backbone(
    config: RunConfig, class_names: Sequence[str], image_shape: tuple[int, int, int]
) -> FrozenDenoiser:
    """Load the backbone whose weights a recipe names.

    Args:
        config: the recipe of an adapter ensemble.
        class_names: names of all classes.
        image_shape: height, width and channels of the images.

    Raises:
        ValueError: it is not there, or does not fit the images.
    """
    assert config.model.weights is not None, "the recipe names weights"
    folder, noise = Path(config.model.weights).expanduser(), config.noise.build()
    return load_backbone_checkpoint(folder, class_names, image_shape, noise, config.model.prompt)


def load_lora_backbone(folder: Path) -> AdapterEnsembleDDPMPipeline:
    """Load what no deletion changes from the model folder of a run, onto this process's device."""
    with quiet_loading():
        pipeline = AdapterEnsembleDDPMPipeline.from_pretrained(folder, local_files_only=True)
    return pipeline.to(process_state().device)


def load_lora_pipeline(
    folder: Path,
    sampling: SamplingConfig,
    environments_of: Callable[[str, str], tuple[str, ...] | None],
) -> AdapterEnsembleDDPMPipeline | None:
    """Load an adapter ensemble from the model folder of a run, with the sampler that is asked for.

    Args:
        folder: the model folder.
        sampling: how images are sampled.
        environments_of: tells where adapters were fit, from the digests of records and adapters that were
            read; `None` if these are not one state.

    Returns:
        The pipeline; `None` if a change came between reading the records and the adapters.

    Raises:
        ValueError: a file of it is missing or was changed.
    """
    pipeline = load_lora_backbone(folder)
    noise = DDPMScheduler.from_config(pipeline.scheduler.config)
    pipeline.scheduler = build_sampler(sampling.sampler, noise)
    pixels = pipeline.denoiser.exemplars_per_image > 0
    rows, exemplars = ExemplarFolder.read(
        folder / RunPaths.exemplars_name, lambda stored: (stored.all_rows(pixels), stored.digest)
    )
    states, adapters = AdapterFolder.read(
        folder / RunPaths.adapters_name, lambda stored: (stored.serving(), stored.digest)
    )
    if environments_of(exemplars, adapters) is None:
        return None
    if pixels:
        pipeline.register_modules(exemplars=_store_of(rows, pipeline.config.class_names))
    pipeline.adapters = ServedAdapters(states, _members(rows, pipeline))
    return pipeline


def _store_of(rows: Rows, class_names: Sequence[str]) -> ExemplarStore:
    """Return stored exemplars as what a semi-parametric backbone looks at."""
    names = tuple(ids_to_hex(rows.ids))
    return ExemplarStore.from_images(
        IndexedImages(rows.pixels, rows.labels, rows.ids, tuple(class_names), names)
    )


def _members(rows: Rows, pipeline: AdapterEnsembleDDPMPipeline) -> np.ndarray:
    """Count the records of each class that are routed to each adapter, int64 ``(adapters, classes)``."""
    router = pipeline.router
    routes = Records.of_rows(rows, router.encoder.out_dim)[1]
    return count_members(rows.labels, routes, len(router.key_codes), pipeline.num_classes)
