"""A denoiser that no deletion changes, with all that turns images and classes into what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, ConfigMixin, DDPMScheduler
from torch import Tensor

from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.models.denoiser_checks import Network, require_conditions, require_plain_network
from gen_unlearn.models.fusion import ExemplarTokens, FusionContext
from gen_unlearn.models.text_conditioning import ClassPrompts
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import digest_json, digest_state

NULL_CLASS = -1
"""In the place of a class: without any, for guidance."""

_AUTOENCODED_AT_ONCE = 8


class FrozenDenoiser:
    """A frozen network, always in evaluation mode.

    Args:
        network: a `UNet2DModel`, unconditional or with an embedding for each class and perhaps one more, the
            null class; or a `UNet2DConditionModel` that takes nothing but the prompts.
        noise: the noise schedule that it was trained with.
        classes: number of classes that images have.
        vae: between images and what is denoised; without it, images are what is denoised.
        prompts: what tells a `UNet2DConditionModel` the classes; only with one.

    Raises:
        ValueError: the network is none of these, or does not fit the classes, the prompts or the autoencoder.
    """

    exemplars_per_image = 0
    """How many other members of its adapter and class an image is denoised beside in training, at most."""

    def __init__(
        self,
        network: Network,
        noise: DDPMScheduler,
        classes: int,
        vae: AutoencoderKL | None = None,
        prompts: ClassPrompts | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.noise = noise
        self.classes = classes
        self.vae = None if vae is None else vae.eval().requires_grad_(False)
        self.prompts = None if prompts is None else prompts.eval().requires_grad_(False)
        require_plain_network(network, vae)
        require_conditions(network, prompts, classes)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move the network, the autoencoder and the prompts to a device."""
        for part in (self.network, self.vae, self.prompts):
            if part is not None:
                part.to(device)
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides what adapters learn of images: networks, prompts and noise schedule."""
        parts = {"network": self.network, "vae": self.vae, "prompts": self.prompts}
        digests = {
            name: [digest_state(part.state_dict()), _settings(part)]
            for name, part in parts.items()
            if part is not None
        }
        schedule = digest_state({"alphas_cumprod": self.noise.alphas_cumprod})
        return digest_json([digests, schedule, self.noise.config.prediction_type])

    @property
    def has_null_class(self) -> bool:
        """Whether it can denoise without a class, so that a class can be guided towards."""
        embeddings = self.network.config.get("num_class_embeds")
        return self.prompts is not None or (embeddings is not None and embeddings > self.classes)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what it denoises."""
        config = self.network.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that it generates."""
        channels, height, width = self.sample_shape
        if self.vae is None:
            return height, width, channels
        return height * self._reduction, width * self._reduction, self.vae.config.in_channels

    def adaptable(self, layer: str) -> bool:  # noqa: ARG002, all of this kind
        """Tell by its name whether a layer may have adapters."""
        return True

    def require_stack(self, stack: int) -> None:
        """Raise a ValueError if so many adapters trained together would touch each other's bits."""

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> Tensor:
        """Map uint8 images ``(n, height, width, channels)`` to what is denoised, float32, on the device."""
        images = to_model_input(pixels).to(self.device)
        if self.vae is None:
            return images
        vae = self.vae
        latents = [vae.encode(few.to(vae.dtype)).latent_dist.mode().float() for few in self._few(images)]
        return (torch.cat(latents) - self._shift) * self._scaling

    @torch.no_grad()
    def decode(self, samples: Tensor) -> Tensor:
        """Map what was denoised back to images ``(n, channels, height, width)`` in about [-1, 1]."""
        if self.vae is None:
            return samples
        latents = samples.float() / self._scaling + self._shift
        return torch.cat([self.vae.decode(few.to(self.vae.dtype)).sample for few in self._few(latents)])

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        labels: np.ndarray,
        context: FusionContext | None = None,  # noqa: ARG002, no exemplars here
    ) -> Tensor:
        """Predict what the schedule's ``prediction_type`` names.

        Args:
            noisy: ``(batch, channels, height, width)``.
            timesteps: int64 ``(batch,)`` or ``()``.
            labels: class of each row, int64 ``(batch,)``; `NULL_CLASS` for none.
            context: the exemplars of each row, see `beside`; only a semi-parametric network looks at them.
        """
        return self.network(noisy, timesteps, **self._condition(labels, noisy.dtype)).sample

    def tokens(self, pixels: np.ndarray) -> ExemplarTokens | None:  # noqa: ARG002
        """Encode images as exemplars, where the network looks at some; no adapter takes part in that."""
        return None

    def beside(
        self,
        tokens: ExemplarTokens | None,  # noqa: ARG002
        chosen: Sequence[np.ndarray],  # noqa: ARG002
    ) -> FusionContext | None:
        """Return what rows look at: of each row the indices of its exemplars, perhaps none."""
        return None

    def with_exemplars(
        self,
        store: ExemplarStore | None,  # noqa: ARG002
        count: int,  # noqa: ARG002
        seeds: Sequence[int],  # noqa: ARG002
    ) -> Self:
        """Return what samples with the exemplars that are left, where the network looks at some: else itself.

        Args:
            store: the exemplars.
            count: exemplars of each image, at most.
            seeds: which ones are drawn, one for each image of a batch; a batch of several times as many rows
                takes them again.
        """
        return self

    def _condition(self, labels: np.ndarray, dtype: torch.dtype) -> dict[str, Any]:
        """Return what tells the network the classes."""
        if self.prompts is not None:
            return {"encoder_hidden_states": self.prompts(labels).to(self.device, dtype)}
        embeddings = self.network.config.num_class_embeds
        if embeddings is None:
            return {}
        if not self.has_null_class and (labels == NULL_CLASS).any():
            raise ValueError(
                "this denoiser has no null class: set guidance_scale and label_dropout to what needs none"
            )
        known = np.where(labels == NULL_CLASS, embeddings - 1, labels)
        return {"class_labels": torch.from_numpy(known).to(self.device)}

    @property
    def _reduction(self) -> int:
        """How many pixels a latent is wide."""
        assert self.vae is not None
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def _scaling(self) -> float:
        assert self.vae is not None
        return float(self.vae.config.scaling_factor)

    @property
    def _shift(self) -> float:
        assert self.vae is not None
        return float(self.vae.config.get("shift_factor") or 0.0)

    @staticmethod
    def _few(images: Tensor) -> Sequence[Tensor]:
        """Split a batch into parts that an autoencoder has memory for."""
        return images.split(_AUTOENCODED_AT_ONCE)


def _settings(part: ConfigMixin) -> dict[str, Any]:
    """Return what a network was built with, without versions and places."""
    return {name: value for name, value in part.config.items() if not name.startswith("_")}
