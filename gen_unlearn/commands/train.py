"""Train a generator, or its oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from gen_unlearn.config import RunConfig
from gen_unlearn.core import CoreSplit, split_core
from gen_unlearn.data import IndexedImages, Split, load_split
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.manifest import RunManifest, TrainingRecord
from gen_unlearn.models.denoiser import build_denoiser
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.loading import weights_digest
from gen_unlearn.pipelines.sampling import GeneratorPipeline
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.repro import derive_seed
from gen_unlearn.runs import RunFolder
from gen_unlearn.sealing import RunKey, Tombstones
from gen_unlearn.training.batches import (
    ClassConditioning,
    Conditioning,
    DiffusionBatches,
    ExemplarConditioning,
)
from gen_unlearn.training.checkpoint import CheckpointFolder, Progress
from gen_unlearn.training.diffusion import train_diffusion


def train(
    config: RunConfig,
    out: Path,
    without: ForgetSet | Tombstones | None = None,
    origin: RunFolder | None = None,
    description: str = "train",
) -> RunFolder:
    """Train the generator that `config` describes into the folder `out`.

    A run that was interrupted continues from its newest resume point; a complete one is returned as it is.

    Args:
        config: the recipe.
        out: folder of the run.
        without: images to leave out of the training data: the result is the oracle of their deletion.
        origin: run to take over what is held out and what is core from.
        description: shown before the progress bar.
    """
    split, parts = _load_data(config, [run for run in (RunFolder(out), origin) if run is not None])
    if isinstance(without, ForgetSet):
        without = Tombstones.of(without, RunKey.fresh())
    if without is not None:
        parts = _leave_out(parts, without)
    manifest = RunManifest(
        recipe_digest=config.digest,
        data_digest=parts.digest,
        class_names=parts.core.class_names,
        image_shape=parts.core.image_shape,
        without=None if without is None else without.digest,
    )
    setup = _set_up(config, parts, out)  # First, so that a recipe that cannot work leaves no folder behind.
    run = RunFolder.create(out, config, manifest, without)
    run.keep_split(split.test, parts)
    if run.manifest.training is not None:
        return RunFolder.open(out)
    made_from = f"{manifest.recipe_digest}-{run.manifest.data_digest}"
    checkpoints = CheckpointFolder(out / "checkpoints", made_from)
    progress = _fit(setup, config, checkpoints, description)
    record = TrainingRecord(
        seconds=progress.seconds,
        images=config.training.steps * config.training.batch_size,
        loss=progress.loss,
        parameters=sum(parameter.numel() for parameter in setup.pipeline.unet.parameters()),
        weights_digest=weights_digest(setup.pipeline),
    )
    run.complete_training(setup.pipeline, record)
    checkpoints.remove()
    return run


def _load_data(config: RunConfig, known: Sequence[RunFolder]) -> tuple[Split, CoreSplit]:
    """Load and divide the data, as the first run did that has done so, if any of `known` has."""
    remembers = next((run for run in known if run.held_out_path.exists()), None)
    if remembers is None:
        split = load_split(config.data)
        return split, split_core(split.train, config.core)
    split = remembers.split(config.data)
    return split, remembers.split_core(split.train)


def _leave_out(parts: CoreSplit, without: Tombstones) -> CoreSplit:
    """Take images out of both parts.

    Raises:
        ValueError: an image is part of a public core, so that the run without it is another run altogether.
    """
    deletable = parts.deletable.select(np.flatnonzero(~without.mask(parts.deletable.ids)))
    if parts.core is parts.deletable:
        return CoreSplit(deletable, deletable)
    if without.mask(parts.core.ids).any():
        raise ValueError("expected to train without deletable images, got some of the public core")
    return CoreSplit(parts.core, deletable)


def fit(
    config: RunConfig,
    data: IndexedImages,
    exemplars: IndexedImages | None = None,
    checkpoints: CheckpointFolder | None = None,
    description: str = "train",
) -> tuple[GeneratorPipeline, Progress]:
    """Fit a generator to `data`; return its pipeline, and the steps, seconds and loss it took.

    The result is a function of the recipe and of the images. Raises `TrainingInterruptedError` on Ctrl-C.

    Args:
        config: the recipe; its `core` section does not matter here.
        data: what the weights are fit on.
        exemplars: what the pipeline looks at afterwards, if that is something else.
        checkpoints: where resume points go; `None` for none.
        description: shown before the progress bar.
    """
    parts = CoreSplit(data, data if exemplars is None else exemplars)
    setup = _set_up(config, parts, None if checkpoints is None else checkpoints.path.parent)
    return setup.pipeline, _fit(setup, config, checkpoints, description)


@dataclass(frozen=True)
class _Setup:
    """Everything that training needs, with fresh weights."""

    pipeline: GeneratorPipeline
    batches: DiffusionBatches
    accelerator: Accelerator


def _set_up(config: RunConfig, parts: CoreSplit, project: Path | None) -> _Setup:
    training, data = config.training, parts.core
    AcceleratorState._reset_state()  # Each run has its own precision.
    accelerator = Accelerator(
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        log_with=training.log_with,
        project_dir=project,
    )
    if accelerator.num_processes > 1:
        raise ValueError(f"training runs in one process so far, got {accelerator.num_processes}")
    if config.model.kind == "semi-parametric" and 2 * training.batch_size > len(data):
        raise ValueError(
            f"batch_size ({training.batch_size}) must be at most half of the {len(data)} images that the "
            f"weights are fit on: no image of a step serves as an exemplar in it"
        )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(config.seed, "weights"))
        model = build_denoiser(config.model, data.image_shape, len(data.class_names), config.noise)
    sampler = build_sampler(config.sampling.sampler, config.noise.build())
    conditioning: Conditioning
    pipeline: GeneratorPipeline
    if isinstance(model, SemiParametricUNet2DModel):
        conditioning = _exemplar_conditioning(config, data, ExemplarStore.from_images(data), model)
        store = ExemplarStore.from_images(parts.deletable)
        pipeline = SemiParametricDDPMPipeline(model, sampler, store, config.core.mode)
    else:
        conditioning = ClassConditioning(
            data.labels, len(data.class_names), training.label_dropout, config.seed
        )
        pipeline = ClassConditionalDDPMPipeline(model, sampler)
    batches = DiffusionBatches(
        data=data,
        conditioning=conditioning,
        batch_size=training.batch_size,
        steps=training.steps,
        num_timesteps=config.noise.num_train_timesteps,
        seed=config.seed,
        horizontal_flip=training.horizontal_flip,
        reorientation=training.reorientation,
        accumulation=training.gradient_accumulation_steps,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    return _Setup(pipeline, batches, accelerator)


def _fit(
    setup: _Setup, config: RunConfig, checkpoints: CheckpointFolder | None, description: str
) -> Progress:
    """Train; the caller's random state is left alone, and dropout draws from the run's seed."""
    accelerator, model = setup.accelerator, setup.pipeline.unet
    if config.training.log_with is not None:
        accelerator.init_trackers("gen_unlearn", {"recipe": config.digest, "seed": config.seed})
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(config.seed, "dropout", accelerator.process_index))
        progress = train_diffusion(
            model, config.noise.build(), setup.batches, config.training, accelerator, checkpoints, description
        )
    accelerator.end_training()
    model.eval()
    return progress


def _exemplar_conditioning(
    config: RunConfig, data: IndexedImages, store: ExemplarStore, model: SemiParametricUNet2DModel
) -> ExemplarConditioning:
    smallest, largest = config.training.exemplars_per_class
    return ExemplarConditioning(
        data=data,
        store=store,
        smallest=smallest,
        largest=largest,
        dropout=config.training.exemplar_dropout,
        label_slots=model.config.num_label_slots,
        label_dropout=config.training.label_dropout,
        seed=config.seed,
        reorientation=config.training.reorientation,
    )


def deleted_from(paths: Sequence[Path]) -> tuple[Tombstones, RunFolder]:
    """Return what was deleted from one run, by all of its receipts or by some, and the run.

    Args:
        paths: the run, or receipts in it.

    Raises:
        ValueError: nothing was deleted, or the receipts are not of one run.
    """
    runs = {path.resolve() if path.is_dir() else path.resolve().parent.parent for path in paths}
    if len(runs) != 1:
        raise ValueError(f"expected one run, or receipts of one, got {len(runs)} runs")
    run = RunFolder.open(runs.pop())
    names = {path.name for path in paths if not path.is_dir()}
    entries = [entry for entry in run.ledger.entries if entry.kind == "deleted"]
    chosen = [entry for entry in entries if entry.receipt in names or not names]
    missing = names - {entry.receipt for entry in chosen}
    if missing:
        raise ValueError(f"{run.path} has no receipt {', '.join(sorted(missing))}")
    if not chosen:
        raise ValueError(f"nothing was deleted from {run.path}: it has no receipts")
    return Tombstones(run.key, frozenset(mark for entry in chosen for mark in entry.tombstones)), run


def describe(run: RunFolder) -> dict[str, Any]:
    """Return the facts of a trained run, for people and for ``--json``."""
    manifest = run.manifest
    if manifest.training is None:
        raise ValueError(f"training of {run.path} is not complete")
    return {"run": str(run.path), "recipe": manifest.recipe_digest, "without": manifest.without} | {
        f"{'seconds_train' if name == 'seconds' else name}": value
        for name, value in asdict(manifest.training).items()
    }
