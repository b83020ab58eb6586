"""Mix the scores of several LoRA adapters, weighted by what public keys say of an image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from gen_unlearn.adapters.records import STEPS
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.pipelines.lora_composition import AdaptedNetwork, ChosenAdapters


class MixturePrediction:
    """Predict with a mixture of the adapters' scores (arXiv 2308.01937): `k` evaluations of the network.

    The score of a mixture ``sum_i pi_i p_i`` is that of each part, weighted by the probability that the noisy
    image came from it: ``w_i(x, t) ~ pi_i p_i(x, t)``. What `p_i` is of an image is not known without a model
    that was trained on deletable images, so `KeyAffinity` says it from public keys alone, of the clean image
    that the adapters predict together, weighted by `pi`.
    """

    def __init__(self, network: AdaptedNetwork, chosen: ChosenAdapters, affinity: KeyAffinity) -> None:
        self.network, self.numbers, self.affinity = network, chosen.numbers, affinity
        self.factors = [network.single(place) for place in range(chosen.numbers.shape[1])]
        self.weights = torch.from_numpy(chosen.weights).float().to(network.denoiser.device)

    @torch.no_grad()
    def __call__(self, samples: Tensor, timestep: Tensor) -> Tensor:
        """Map noisy images ``(images, channels, height, width)`` to the prediction."""
        parts = torch.stack([self.network.predict(samples, timestep, part) for part in self.factors], dim=1)
        first = _weighted(parts, self.weights)
        clean = predicted_clean(self.network.denoiser.noise, first, samples, timestep)
        logits = self.weights.log() + self.affinity(clean, self.numbers)
        return _weighted(parts, logits.softmax(dim=1))


class KeyAffinity:
    """How near images are to the public keys of adapters: ``-|f(x) - key|^2 / (2 tau^2)``.

    Features `f` are those of the public router, in standard deviations of public images. ``tau^2`` is the
    median squared distance of a key to the nearest other key, so that an image at one key gives its neighbour
    about ``exp(-1/2)`` of the weight; 1 if all keys are the same.

    Args:
        router: a public encoder with its keys.
        decode: turns what is denoised into images ``(n, channels, height, width)`` in [-1, 1].
    """

    def __init__(self, router: AdapterBackbone, decode: Callable[[Tensor], Tensor]) -> None:
        self.router, self.decode = router, decode
        self.keys = router.key_codes.float() / STEPS
        distinct = torch.unique(self.keys, dim=0)
        distances = torch.cdist(distinct.double(), distinct.double()).square()
        distances.fill_diagonal_(torch.inf)
        self.spacing = float(distances.amin(dim=1).median()) if len(distinct) > 1 else 1.0

    def __call__(self, clean: Tensor, numbers: np.ndarray) -> Tensor:
        """Return the affinity of each image to each of its adapters, float32 ``(images, k)``.

        Args:
            clean: what is denoised, without noise, ``(images, channels, height, width)``.
            numbers: adapters, int64 ``(images, k)``; what stands for `NO_ADAPTER` means nothing.
        """
        images = self.decode(clean).clamp(-1, 1).to(self.router.device, self.router.dtype)
        features = (self.router(images) - self.router.mean) / self.router.deviation
        keys = self.keys[torch.from_numpy(numbers.clip(min=0)).to(self.keys.device)]
        squares = (features.float()[:, None] - keys).square().sum(dim=-1)
        return (-squares / (2 * self.spacing)).to(clean.device)


def mixture(
    network: AdaptedNetwork, chosen: ChosenAdapters, router: AdapterBackbone | None
) -> MixturePrediction:
    """Mix the scores of adapters by what the keys of a router say.

    Raises:
        ValueError: there is no router.
    """
    if router is None:
        raise ValueError(
            "expected a pipeline with a router for a mixture, got one without; load the router with it"
        )
    return MixturePrediction(network, chosen, KeyAffinity(router, network.denoiser.decode))


def predicted_clean(noise: DDPMScheduler, predicted: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
    """Return the image that a prediction of the schedule's ``prediction_type`` says lies below the noise.

    Args:
        noise: the schedule of training.
        predicted: ``(images, channels, height, width)``, as the rest.
        noisy: what was denoised.
        timestep: ``()``; between two timesteps of training the nearest counts.
    """
    kept = noise.alphas_cumprod.to(noisy)[timestep.round().long().clamp(0, len(noise.alphas_cumprod) - 1)]
    kind = noise.config.prediction_type
    if kind == "sample":
        return predicted
    if kind == "v_prediction":
        return kept.sqrt() * noisy - (1 - kept).sqrt() * predicted
    return (noisy - (1 - kept).sqrt() * predicted) / kept.sqrt()


def _weighted(parts: Tensor, weights: Tensor) -> Tensor:
    """Add up ``(images, k, channels, height, width)`` with weights ``(images, k)``."""
    return (parts * weights[:, :, None, None, None].to(parts.dtype)).sum(dim=1)
