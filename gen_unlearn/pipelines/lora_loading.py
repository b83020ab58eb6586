"""Make and load the pipeline of an adapter ensemble that generates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffusers import DDPMScheduler

from gen_unlearn.adapters.adapter_folder import AdapterFolder
from gen_unlearn.adapters.family import AdapterState
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.serving import ServedAdapters, count_members
from gen_unlearn.config import RunConfig
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.backbone_checkpoints import load_backbone_checkpoint
from gen_unlearn.models.frozen_denoiser import FrozenDenoiser
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.quiet_loading import quiet_loading
from gen_unlearn.pipelines.sampling import SamplingConfig
from gen_unlearn.processes import process_state
from gen_unlearn.run_paths import RunPaths


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


def load_lora_pipeline(folder: Path, sampling: SamplingConfig) -> AdapterEnsembleDDPMPipeline:
    """Load an adapter ensemble from the model folder of a run, with the sampler that is asked for.

    Raises:
        ValueError: a file of it is missing or was changed.
    """
    pipeline = load_lora_backbone(folder)
    noise = DDPMScheduler.from_config(pipeline.scheduler.config)
    pipeline.scheduler = build_sampler(sampling.sampler, noise)
    if pipeline.denoiser.exemplars_per_image:
        exemplars = ExemplarStore.from_pretrained(folder / RunPaths.exemplars_name)
        pipeline.register_modules(exemplars=exemplars)
    members = _members(folder, pipeline)
    states: dict[int, AdapterState] = AdapterFolder.read(
        folder / RunPaths.adapters_name, lambda stored: stored.serving()
    )
    pipeline.adapters = ServedAdapters(states, members)
    return pipeline


def _members(folder: Path, pipeline: AdapterEnsembleDDPMPipeline) -> np.ndarray:
    """Count the records of each class that are routed to each adapter, int64 ``(adapters, classes)``."""
    rows = ExemplarFolder.read(folder / RunPaths.exemplars_name, lambda stored: stored.all_rows(pixels=False))
    router = pipeline.router
    routes = Records.of_rows(rows, router.encoder.out_dim)[1]
    return count_members(rows.labels, routes, len(router.key_codes), pipeline.num_classes)
