"""A denoiser as a model that methods can train, and its loss, whose noise is a hash of the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.method import copy_of
from gen_unlearn.repro import numpy_generator, torch_generator


class DenoisingModel(nn.Module):
    """A `UNet2DModel` with the noise schedule that it was trained with.

    Args:
        network: unconditional, or with an embedding of each class and perhaps one more, the null label.
        noise: its noise schedule; it predicts the noise or the velocity, as ``prediction_type`` says.
        classes: number of classes of the images.

    Raises:
        ValueError: the network has fewer embeddings than there are classes, or it predicts something else.
    """

    def __init__(self, network: UNet2DModel, noise: DDPMScheduler, classes: int) -> None:
        super().__init__()
        embeddings = network.config.num_class_embeds
        if embeddings is not None and embeddings < classes:
            raise ValueError(f"expected an embedding for each of {classes} classes, got {embeddings}")
        if noise.config.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                "expected a network that predicts epsilon or v_prediction, "
                f"got {noise.config.prediction_type}"
            )
        self.network = network
        self.noise = noise
        self.classes = classes
        self.register_buffer("signal", noise.alphas_cumprod.sqrt(), persistent=False)
        self.register_buffer("deviation", (1 - noise.alphas_cumprod).sqrt(), persistent=False)

    @property
    def num_timesteps(self) -> int:
        """Length of the noise schedule; timesteps are integers from 0 to one less."""
        return int(self.noise.config.num_train_timesteps)

    @property
    def null_label(self) -> int | None:
        """The label of no class, `None` if the network has none."""
        embeddings = self.network.config.num_class_embeds
        return self.classes if embeddings is not None and embeddings > self.classes else None

    def noised(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``sqrt(abar_t) x + sqrt(1 - abar_t) eps``, ``(batch, channels, height, width)``."""
        return self._at("signal", timesteps) * images + self._at("deviation", timesteps) * noise

    def forward(self, noisy: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """Return the predicted noise, whatever the network predicts.

        Args:
            noisy: ``(batch, channels, height, width)``.
            timesteps: int64 ``(batch,)``.
            labels: int64 ``(batch,)``; an unconditional network ignores them.
        """
        conditional = self.network.config.num_class_embeds is not None
        given = {"class_labels": labels} if conditional else {}
        found: Tensor = self.network(noisy, timesteps, **given).sample
        if self.noise.config.prediction_type == "v_prediction":
            return self._at("signal", timesteps) * found + self._at("deviation", timesteps) * noisy
        return found

    def _at(self, name: str, timesteps: Tensor) -> Tensor:
        return self.get_buffer(name)[timesteps][:, None, None, None]


class Draws(NamedTuple):
    """What is random about a batch.

    Attributes:
        timesteps: int64 ``(batch,)``, uniform over the whole schedule.
        noise: standard normal, like the images.
        labels: int64 ``(batch,)``, the null label where the class was dropped.
    """

    timesteps: Tensor
    noise: Tensor
    labels: Tensor


@dataclass(frozen=True)
class DenoisingLoss:
    """The loss of a denoiser: the squared error of the predicted noise, a mean over pixels and the batch.

    Every number of the literature that belongs to a sum over pixels is converted to this mean by the presets.

    Attributes:
        seed: of timesteps, noise and label dropout.
        role: of the term, such as ``"retain"``; terms of one step draw on their own.
        label_dropout: probability that a class is replaced by the null label, if the network has one.
    """

    seed: int
    role: str
    label_dropout: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        return self.per_image(model, batch).mean()

    def per_image(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean squared error of every image, float32 ``(batch,)``."""
        assert isinstance(model, DenoisingModel)
        draws = self.draw(model, batch)
        noisy = model.noised(batch.inputs, draws.noise, draws.timesteps)
        return squared_error(model(noisy, draws.timesteps, draws.labels), draws.noise)

    def draw(self, model: DenoisingModel, batch: Batch) -> Draws:
        """Return timesteps, noise and labels of a batch: a function of seed, role, epoch and step."""
        device, count = batch.inputs.device, len(batch.inputs)
        generator = torch_generator(self.seed, "denoising", self.role, batch.epoch, batch.step)
        timesteps = torch.randint(0, model.num_timesteps, (count,), generator=generator)
        noise = torch.randn(batch.inputs.shape, generator=generator)
        labels = batch.labels
        if self.label_dropout and model.null_label is not None:
            draws = numpy_generator(self.seed, "label dropout", self.role, batch.epoch, batch.step)
            dropped = torch.from_numpy(np.asarray(draws.random(count) < self.label_dropout)).to(device)
            labels = torch.where(dropped, model.null_label, labels)
        return Draws(timesteps.to(device), noise.to(device), labels)


def copy_of_denoiser(model: nn.Module, accelerator: Accelerator) -> DenoisingModel:
    """Return a deep copy on the accelerator's device, all of it to be trained.

    Raises:
        ValueError: the model is not a `DenoisingModel`.
    """
    if not isinstance(model, DenoisingModel):
        raise ValueError(
            f"expected a DenoisingModel, got {type(model).__name__}; wrap the network with its noise schedule"
        )
    student = copy_of(model, accelerator)
    assert isinstance(student, DenoisingModel)
    return student


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error over the pixels of each image, float32 ``(batch,)``."""
    return (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))
