"""Train a generator, or its oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from gen_unlearn.config import RunConfig
from gen_unlearn.data import IndexedImages, load_split
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
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import derive_seed
from gen_unlearn.runs import RunFolder
from gen_unlearn.training.batches import (
    ClassConditioning,
    Conditioning,
    DiffusionBatches,
    ExemplarConditioning,
)
from gen_unlearn.training.checkpoint import CheckpointFolder, Progress
from gen_unlearn.training.diffusion import train_diffusion


def train(
    config: RunConfig, out: Path, without: ForgetSet | None = None, description: str = "train"
) -> RunFolder:
    """Train the generator that `config` describes into the folder `out`.

    A run that was interrupted continues from its newest resume point; a complete one is returned as it is.

    Args:
        config: the recipe.
        out: folder of the run.
        without: images to leave out of the training data: the result is the oracle of their deletion.
        description: shown before the progress bar.
    """
    split = load_split(config.data)
    data = split.train
    if without is not None:
        data = data.without(without)
    manifest = RunManifest(
        recipe_digest=config.digest,
        data_digest=data.digest,
        class_names=data.class_names,
        image_shape=data.image_shape,
        without=None if without is None else without.digest,
    )
    setup = _set_up(config, data, out)  # First, so that a recipe that cannot work leaves no folder behind.
    run = RunFolder.create(out, config, manifest, without)
    run.keep_held_out(split.test)
    if run.manifest.training is not None:
        return run
    checkpoints = CheckpointFolder(out / "checkpoints", f"{manifest.recipe_digest}-{manifest.data_digest}")
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


def fit(
    config: RunConfig,
    data: IndexedImages,
    checkpoints: CheckpointFolder | None = None,
    description: str = "train",
) -> tuple[GeneratorPipeline, Progress]:
    """Fit a generator to `data`; return its pipeline, and the steps, seconds and loss it took.

    The result is a function of the recipe and of the images. Raises `TrainingInterruptedError` on Ctrl-C.
    """
    setup = _set_up(config, data, None if checkpoints is None else checkpoints.path.parent)
    return setup.pipeline, _fit(setup, config, checkpoints, description)


@dataclass(frozen=True)
class _Setup:
    """Everything that training needs, with fresh weights."""

    pipeline: GeneratorPipeline
    batches: DiffusionBatches
    accelerator: Accelerator


def _set_up(config: RunConfig, data: IndexedImages, project: Path | None) -> _Setup:
    training = config.training
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
            f"batch_size ({training.batch_size}) must be at most half of the {len(data)} training images: no "
            f"image of a step serves as an exemplar in it"
        )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(config.seed, "weights"))
        model = build_denoiser(config.model, data.image_shape, len(data.class_names))
    sampler = build_sampler(config.sampling.sampler, config.noise.build())
    conditioning: Conditioning
    pipeline: GeneratorPipeline
    if isinstance(model, SemiParametricUNet2DModel):
        store = ExemplarStore.from_images(data)
        conditioning = _exemplar_conditioning(config, data, store, model)
        pipeline = SemiParametricDDPMPipeline(model, sampler, store)
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
    )


def read_forget_sets(paths: Sequence[Path]) -> ForgetSet | None:
    """Read what to train without: receipts, or runs whose receipts all count."""
    forget: ForgetSet | None = None
    for path in paths:
        found = sorted((path / "receipts").glob("*.json")) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"nothing was deleted from {path}: it has no receipts")
        for file in found:
            receipt = DeletionReceipt.from_file(file).forget_set
            forget = receipt if forget is None else forget.union(receipt)
    return forget


def describe(run: RunFolder) -> dict[str, Any]:
    """Return the facts of a trained run, for people and for ``--json``."""
    manifest = run.manifest
    if manifest.training is None:
        raise ValueError(f"training of {run.path} is not complete")
    return {"run": str(run.path), "recipe": manifest.recipe_digest, "without": manifest.without} | {
        f"{'seconds_train' if name == 'seconds' else name}": value
        for name, value in asdict(manifest.training).items()
    }
