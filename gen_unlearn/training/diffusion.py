"""Train a denoiser: one loop for the semi-parametric model and for its parametric reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.models.modeling_utils import ModelMixin
from diffusers.training_utils import EMAModel

from gen_unlearn.training.batches import DiffusionBatches
from gen_unlearn.training.checkpoint import CheckpointFolder, Progress
from gen_unlearn.training.compilation import compile_forward, let_sizes_vary
from gen_unlearn.training.schedule import learning_rate
from gen_unlearn.training.steps import batch_loader, counted_steps
from gen_unlearn.training.support import require_supported

_AT_LEAST_ONE = (
    "images",
    "batch_size",
    "gradient_accumulation_steps",
    "checkpoint_images",
    "checkpoints_total_limit",
)


@dataclass(frozen=True)
class TrainingConfig:
    """How a denoiser is trained.

    Attributes:
        images: images shown in all, rounded up to whole steps.
        batch_size: images of one step, over all processes and micro-batches.
        learning_rate: peak of AdamW's learning rate.
        warmup_images: images over which the learning rate rises linearly; it then falls to 0 by a cosine.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: the gradient is scaled down to this norm.
        ema_max_decay: greatest decay of the averaged weights, which are what is kept.
        ema_power: the decay after *k* steps is ``1 - (1 + k) ** -ema_power``, up to the greatest.
        exemplars_per_class: least and greatest number of exemplars per class and step.
        exemplar_dropout: probability that an image is denoised without exemplars.
        label_dropout: probability of the null label, where labels are used.
        horizontal_flip: mirror training images at random.
        reorientation: probability that a class is shown in a step under one of the eight orientations of the
            square, its exemplars with it. A turned class is a class of its own, so that the network learns to
            follow exemplars of classes that it never saw; 0 turns nothing.
        gradient_accumulation_steps: micro-batches of one step.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``, which needs a GPU.
        compile: compile the network with `torch.compile`, which rounds differently.
        checkpoint_images: images between two resume points.
        checkpoints_total_limit: how many of the newest resume points are kept.
        dataloader_workers: processes that decode images.
        log_with: tracker, such as ``"tensorboard"`` or ``"wandb"``; `None` for none.
    """

    images: int = 120_000
    batch_size: int = 120
    learning_rate: float = 1e-3
    warmup_images: int = 6_000
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_max_decay: float = 0.9999
    ema_power: float = 0.75
    exemplars_per_class: tuple[int, int] = (8, 32)
    exemplar_dropout: float = 0.1
    label_dropout: float = 0.1
    horizontal_flip: bool = False
    reorientation: float = 0.0
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    checkpoint_images: int = 60_000
    checkpoints_total_limit: int = 1
    dataloader_workers: int = 0
    log_with: str | None = None

    def __post_init__(self) -> None:
        smallest, largest = self.exemplars_per_class
        if not 1 <= smallest <= largest:
            raise ValueError(
                f"exemplars_per_class must be [least, greatest] from 1 up, got {[smallest, largest]}"
            )
        for name in _AT_LEAST_ONE:
            if self.__dict__[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {self.__dict__[name]}")
        if not 0 <= self.reorientation <= 1:
            raise ValueError(f"reorientation must be in [0, 1], got {self.reorientation}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        for name in ("warmup_images", "weight_decay", "max_grad_norm", "dataloader_workers"):
            if self.__dict__[name] < 0:
                raise ValueError(f"{name} must be at least 0, got {self.__dict__[name]}")
        for name in ("exemplar_dropout", "label_dropout"):
            if not 0 <= self.__dict__[name] < 1:
                raise ValueError(f"{name} must be in [0, 1), got {self.__dict__[name]}")

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return math.ceil(self.images / self.batch_size)


def train_diffusion(
    model: ModelMixin,
    noise_scheduler: DDPMScheduler,
    batches: DiffusionBatches,
    config: TrainingConfig,
    accelerator: Accelerator,
    checkpoints: CheckpointFolder | None = None,
    description: str = "train",
) -> Progress:
    """Train `model` to predict the noise in `batches`, and leave it with the averaged weights.

    Minimises ``mean (target - model(x_t, t, conditioning))²`` over pixels and batch, with
    ``x_t = sqrt(ᾱ_t) x + sqrt(1 - ᾱ_t) ε`` (Ho et al. 2020); the target is ``ε``, or the velocity if the
    schedule says so. Continues from the newest resume point, exactly as if it had not stopped.

    Args:
        model: network called as ``model(x_t, t, **conditioning)``; changed in place.
        noise_scheduler: the noise schedule.
        batches: what each step sees.
        config: hyper-parameters.
        accelerator: devices, precision, accumulation and trackers.
        checkpoints: where resume points go; `None` for none.
        description: shown before the progress bar.

    Returns:
        Steps, seconds and mean loss at the end, interrupted parts included.

    Raises:
        TrainingInterruptedError: Ctrl-C; a resume point was written if there is a place for it.
        ValueError: this machine cannot do what the recipe asks for, or the network would be trained in
            shards.
    """
    require_supported(accelerator)
    if config.compile:
        compile_forward(model)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    ema = EMAModel(
        model.parameters(),
        decay=config.ema_max_decay,
        use_ema_warmup=True,
        power=config.ema_power,
        foreach=True,
    )
    ema.to(accelerator.device)
    wrapped.train()
    step_loss = torch.zeros((), device=accelerator.device)

    with counted_steps(config, accelerator, description, checkpoints, ema) as steps:
        positions = range(steps.done.step * batches.accumulation, len(batches))
        for host_batch in batch_loader(batches, positions, config.dataloader_workers):
            batch = host_batch.to(accelerator.device)
            if config.compile:
                let_sizes_vary(batch.conditioning)
            noisy = noise_scheduler.add_noise(batch.images, batch.noise, batch.timesteps)
            target = batch.noise
            if noise_scheduler.config.prediction_type == "v_prediction":
                target = noise_scheduler.get_velocity(batch.images, batch.noise, batch.timesteps)
            with accelerator.accumulate(wrapped):
                prediction = wrapped(noisy, batch.timesteps, **batch.conditioning).sample
                loss = F.mse_loss(prediction.float(), target.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(wrapped.parameters(), config.max_grad_norm)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, steps.images)
                optimizer.step()
                optimizer.zero_grad()
            step_loss += loss.detach() / batches.accumulation
            if not accelerator.sync_gradients:
                continue
            if not accelerator.optimizer_step_was_skipped:  # As fp16 does after an overflow.
                ema.step(model.parameters())
            steps.finish(step_loss, learning_rate(config, steps.images + config.batch_size))
            step_loss = torch.zeros_like(step_loss)

    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    if config.compile:
        del model.forward
    ema.copy_to(model.parameters())
    return steps.agreed_progress()
