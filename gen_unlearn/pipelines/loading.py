"""Load a saved generator, and ask what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gen_unlearn.models.denoiser import DenoiserKind
from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.denoising import NoiseConfig, build_sampler
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.lora_loading import load_lora_pipeline
from gen_unlearn.pipelines.quiet_loading import quiet_loading
from gen_unlearn.pipelines.sampling import GeneratorPipeline, SamplingConfig
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.processes import process_state
from gen_unlearn.repro import digest_state


def load_generator(
    path: Path,
    kind: DenoiserKind,
    sampling: SamplingConfig,
    noise: NoiseConfig,
) -> GeneratorPipeline:
    """Load a pipeline from a local folder onto this process's device, with the sampler that is asked for."""
    if kind == "adapter-ensemble":
        return load_lora_pipeline(path, sampling)
    pipeline_class = SemiParametricDDPMPipeline if kind == "semi-parametric" else ClassConditionalDDPMPipeline
    with quiet_loading():
        pipeline = pipeline_class.from_pretrained(path, local_files_only=True).to(process_state().device)
    pipeline.scheduler = build_sampler(sampling.sampler, noise.build())
    return pipeline


def weights_digest(pipeline: GeneratorPipeline) -> str:
    """Return the SHA-256 of a pipeline's network weights."""
    return digest_state(pipeline.unet.state_dict())


def served_classes(pipeline: GeneratorPipeline) -> list[int]:
    """Return the classes that can be sampled.

    They are those with an exemplar, or with members at an adapter that answers, or all of a plain model.
    """
    if isinstance(pipeline, AdapterEnsembleDDPMPipeline):
        return pipeline.served_classes
    if isinstance(pipeline, SemiParametricDDPMPipeline):
        return [] if pipeline.exemplars is None else np.unique(pipeline.exemplars.labels).tolist()
    return list(range(pipeline.num_classes))
