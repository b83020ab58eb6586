"""Train a denoiser: one loop for the semi-parametric model and for its parametric reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.models.modeling_utils import ModelMixin
from diffusers.training_utils import EMAModel

from gen_unlearn.training.batches import DiffusionBatches
from gen_unlearn.training.checkpoint import CheckpointFolder, Progress
from gen_unlearn.training.compilation import compile_forward, let_sizes_vary
from gen_unlearn.training.diffusion_config import TrainingConfig
from gen_unlearn.training.exemplar_features import ExemplarFeatures
from gen_unlearn.training.schedule import learning_rate
from gen_unlearn.training.steps import batch_loader, counted_steps
from gen_unlearn.training.support import require_supported


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
    features = ExemplarFeatures(model, accelerator, config.exemplar_refresh_steps)
    step_loss = torch.zeros((), device=accelerator.device)

    with counted_steps(config, accelerator, description, checkpoints, ema, features.kept) as steps:
        positions = range(steps.done.step * batches.accumulation, len(batches))
        for host_batch in batch_loader(batches, positions, config.dataloader_workers):
            batch = host_batch.to(accelerator.device)
            features.add_to(batch.conditioning, steps.done.step)
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
