"""Load a saved generator, and ask what it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from diffusers.utils import logging as diffusers_logging

from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.denoising import NoiseConfig, build_sampler
from gen_unlearn.pipelines.sampling import GeneratorPipeline, SamplingConfig
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.processes import process_state
from gen_unlearn.repro import digest_state


def load_generator(
    path: Path,
    kind: Literal["semi-parametric", "class-conditional"],
    sampling: SamplingConfig,
    noise: NoiseConfig,
) -> GeneratorPipeline:
    """Load a pipeline from a local folder onto this process's device, with the sampler that is asked for."""
    pipeline_class = SemiParametricDDPMPipeline if kind == "semi-parametric" else ClassConditionalDDPMPipeline
    with _quiet_loading():
        pipeline = pipeline_class.from_pretrained(path, local_files_only=True).to(process_state().device)
    pipeline.scheduler = build_sampler(sampling.sampler, noise.build())
    return pipeline


def weights_digest(pipeline: GeneratorPipeline) -> str:
    """Return the SHA-256 of a pipeline's network weights."""
    return digest_state(pipeline.unet.state_dict())


def served_classes(pipeline: GeneratorPipeline) -> list[int]:
    """Return the classes that can be sampled: those with an exemplar, or all of a plain model."""
    if isinstance(pipeline, SemiParametricDDPMPipeline):
        return [] if pipeline.exemplars is None else np.unique(pipeline.exemplars.labels).tolist()
    return list(range(pipeline.num_classes))


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keep diffusers from drawing a progress bar for reading a few local files."""
    enabled = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            diffusers_logging.enable_progress_bar()
