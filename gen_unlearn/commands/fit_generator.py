"""The training of a generator, from fresh weights to its pipeline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.config import RunConfig
from gen_unlearn.core import CoreSplit
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.models.denoiser import build_denoiser
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.sampling import GeneratorPipeline
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.repro import derive_seed
from gen_unlearn.training.batches import (
    ClassConditioning,
    Conditioning,
    DiffusionBatches,
    ExemplarConditioning,
)
from gen_unlearn.training.checkpoint import CheckpointFolder, Progress
from gen_unlearn.training.diffusion import train_diffusion
from gen_unlearn.training.trackers import tracked


@dataclass(frozen=True)
class GeneratorTraining:
    """Everything that the training of a generator needs, with fresh weights."""

    config: RunConfig
    pipeline: GeneratorPipeline
    batches: DiffusionBatches
    accelerator: Accelerator

    @classmethod
    def of(cls, config: RunConfig, parts: CoreSplit, accelerator: Accelerator) -> GeneratorTraining:
        """Set up the training of a recipe.

        Raises:
            ValueError: the batches are too large for the images.
        """
        training, data = config.training, parts.core
        shown = training.batch_size * training.exemplar_refresh_steps
        if config.model.kind == "semi-parametric" and 2 * shown > len(data):
            raise ValueError(
                f"batch_size ({training.batch_size}) x exemplar_refresh_steps "
                f"({training.exemplar_refresh_steps}) must be at most half of the {len(data)} images that "
                f"the weights are fit on: no image of a step serves as an exemplar in it"
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
        return cls(config, pipeline, batches, accelerator)

    @property
    def network(self) -> nn.Module:
        """The denoiser."""
        return self.pipeline.unet

    def fit(
        self, checkpoints: CheckpointFolder | None, description: str
    ) -> tuple[GeneratorPipeline, Progress]:
        """Train; return the pipeline, and the steps, seconds and loss it took.

        The caller's random state is left alone, and dropout draws from the run's seed.
        """
        config, accelerator, model = self.config, self.accelerator, self.pipeline.unet
        about: dict[str, str | int] = {"recipe": config.digest, "seed": config.seed}
        logged = tracked(accelerator, config.training.log_with, about)
        with logged, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(derive_seed(config.seed, "dropout", accelerator.process_index))
            progress = train_diffusion(
                model,
                config.noise.build(),
                self.batches,
                config.training,
                accelerator,
                checkpoints,
                description,
            )
        model.eval()
        return self.pipeline, progress


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
        refresh_steps=config.training.exemplar_refresh_steps,
    )
