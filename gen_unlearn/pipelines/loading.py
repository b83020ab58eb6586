"""Load a saved generator, and ask what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from diffusers.utils import CONFIG_NAME

from gen_unlearn.generator_ensemble_config import BackboneKind
from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.noise_config import NoiseConfig
from gen_unlearn.pipelines.quiet_loading import quiet_loading
from gen_unlearn.pipelines.sampling import GeneratorPipeline
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.processes import process_state
from gen_unlearn.repro import digest_state
from gen_unlearn.run_paths import RunPaths

T = TypeVar("T")


def load_generator(
    path: Path,
    kind: BackboneKind,
    sampling: SamplingConfig,
    noise: NoiseConfig,
) -> GeneratorPipeline:
    """Load a pipeline from a local folder onto this process's device, with the sampler that is asked for."""
    pipeline_class = SemiParametricDDPMPipeline if kind == "semi-parametric" else ClassConditionalDDPMPipeline
    with quiet_loading():
        pipeline = pipeline_class.from_pretrained(path, local_files_only=True).to(process_state().device)
    pipeline.scheduler = build_sampler(sampling.sampler, noise.build())
    return pipeline


def read_one_state(run: RunPaths, read: Callable[[], T | None]) -> T:
    """Read exemplars and adapters of a run; once more while changes wait if one came in between.

    Args:
        run: where they lie.
        read: reads both; `None` if they are not one state.

    Raises:
        ValueError: they do not belong together, or a change was not done in time.
    """
    found = read()
    if found is None:
        with run.change.settled():
            found = read()
    if found is None:
        raise ValueError(
            f"exemplars and adapters of {run.path} are not in the state that the ledger's last entry "
            f"describes; see: gen-unlearn verify {run.path}"
        )
    return found


def samples_without_class(model: Path, classes: int) -> bool:
    """Tell whether a saved generator can be asked for images without a class or exemplars.

    A network with class embeddings and none for the null class cannot.

    Args:
        model: its folder.
        classes: number of classes.
    """
    network = json.loads((model / "unet" / CONFIG_NAME).read_text(encoding="utf-8"))
    embeddings = network.get("num_class_embeds")
    return embeddings is None or embeddings > classes


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
