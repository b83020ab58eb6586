"""Denoise with several LoRA adapters at once: one for each image, or the mean of a few."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gen_unlearn.adapters.family import AdapterState
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.serving import NO_ADAPTER
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.models.frozen_denoiser import NULL_CLASS, FrozenDenoiser
from gen_unlearn.models.stacked_lora import DOWN, UP, Factors, adapted, factor_shapes, lora_layers
from gen_unlearn.pipelines.denoising import require_one_image_per_label

ALONE = threading.RLock()
"""Held while a network computes with adapters: they hang on its layers, and would change what another thread
computes with it."""


@dataclass(frozen=True, eq=False)
class ChosenAdapters:
    """The adapters of each image.

    Attributes:
        numbers: int64 ``(images, k)``; `NO_ADAPTER` where an image has fewer.
        weights: how much each counts, float64 ``(images, k)``, of sum 1 for each image; 0 for `NO_ADAPTER`.
    """

    numbers: np.ndarray
    weights: np.ndarray

    @classmethod
    def evenly(cls, numbers: np.ndarray) -> ChosenAdapters:
        """Let all adapters of an image count the same."""
        there = numbers != NO_ADAPTER
        return cls(numbers, there / there.sum(axis=1, keepdims=True))

    @classmethod
    def by_share(cls, numbers: np.ndarray, shares: np.ndarray) -> ChosenAdapters:
        """Let adapters count by shares, float64 ``(images, k)``, evenly for an image where all are 0."""
        there = np.where(numbers == NO_ADAPTER, 0.0, shares)
        totals = there.sum(axis=1, keepdims=True)
        even = cls.evenly(numbers).weights
        return cls(numbers, np.where(totals > 0, there / np.where(totals > 0, totals, 1), even))


@dataclass(frozen=True)
class DrawnExemplars:
    """What a semi-parametric denoiser looks at; others look at nothing.

    Attributes:
        store: the exemplars that are left.
        count: exemplars of each image, at most.
        seeds: which ones are drawn, of each image.
    """

    store: ExemplarStore | None
    count: int
    seeds: list[int]

    @classmethod
    def of(
        cls, store: ExemplarStore | None, count: int, seed: int | Sequence[int], images: int
    ) -> DrawnExemplars:
        """Give each of some images its seed; a single one is that of all.

        Raises:
            ValueError: another number of seeds.
        """
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * images
        if len(seeds) != images:
            raise ValueError(f"expected one exemplar seed or {images}, one for each image, got {len(seeds)}")
        return cls(store, count, seeds)


def merged(factors: Factors, slots: Tensor, weights: Tensor) -> Factors:
    """Return the weighted sums of adapters' changes of a layer, as adapters of as many times the rank.

    The `A` of the adapters are put below one another and their weighted `B` side by side, as peft's ``cat``
    does: the product is ``sum_i w_i B_i A_i``, without the products of one adapter's `B` with another's `A`
    that a mean of the factors has.

    Args:
        factors: of all adapters.
        slots: which of them make each sum, int64 ``(sums, k)``.
        weights: float ``(sums, k)``.
    """
    down, up = factors.down[slots], factors.up[slots]
    up = up * weights.view(*weights.shape, *(1 for _ in up.shape[2:])).to(up.dtype)
    return Factors(down.flatten(1, 2), up.transpose(1, 2).flatten(2, 3))


class AdaptedNetwork:
    """A denoiser with the adapters of one batch of images, and classes to guide towards.

    Args:
        denoiser: the frozen network.
        lora: how the adapters look.
        states: all adapters that are asked.
        numbers: the adapters of each image, int64 ``(images, k)``.
        labels: class of each image, int64 ``(images,)``; `NULL_CLASS` for none.
        guidance_scale: classifier-free guidance; 1 turns it off.
        exemplars: what a semi-parametric denoiser looks at.

    Raises:
        ValueError: an adapter does not fit the network.
    """

    def __init__(
        self,
        denoiser: FrozenDenoiser,
        lora: LoraConfig,
        states: Mapping[int, AdapterState],
        numbers: np.ndarray,
        labels: np.ndarray,
        guidance_scale: float,
        exemplars: DrawnExemplars,
    ) -> None:
        self.lora, self.guidance_scale = lora, guidance_scale
        self.layers = lora_layers(denoiser.network, lora.targets, denoiser.adaptable)
        self.guided = guidance_scale != 1 and bool((labels != NULL_CLASS).any())
        seeds = [seed for seed in exemplars.seeds for _ in range(2 if self.guided else 1)]
        self.denoiser = denoiser.with_exemplars(exemplars.store, exemplars.count, seeds)
        nothing = np.full_like(labels, NULL_CLASS)
        self.labels = np.stack([labels, nothing], axis=1).ravel() if self.guided else labels
        asked = np.unique(numbers[numbers != NO_ADAPTER])
        self.images, self._slots = len(labels), np.searchsorted(asked, numbers).clip(max=len(asked) - 1)
        self._factors = self._stacked([states[number] for number in asked.tolist()])

    def _stacked(self, states: list[AdapterState]) -> dict[str, Factors]:
        """Put adapters behind one another, on the network's device."""
        names = sorted(layer + end for layer in self.layers for end in (DOWN, UP))
        for state in states:
            if sorted(state) != names:
                raise ValueError(
                    f"expected adapters of the layers {', '.join(self.layers)}, got one of "
                    f"{', '.join(sorted(state))}; the adapters belong to another network or other targets"
                )
        found: dict[str, Factors] = {}
        for name, layer in self.layers.items():
            pair = []
            for end, shape in zip((DOWN, UP), factor_shapes(layer, self.lora.rank), strict=True):
                arrays = np.stack([state[name + end] for state in states])
                if arrays.shape[1:] != shape:
                    raise ValueError(f"expected {name}{end} of shape {shape}, got {arrays.shape[1:]}")
                pair.append(torch.from_numpy(arrays).to(layer.weight.device, layer.weight.dtype))
            found[name] = Factors(*pair)
        return found

    def merged(self, weights: np.ndarray) -> dict[str, Factors]:
        """Return one adapter for each image, the weighted sum of its own; if all are the same, one for all.

        Args:
            weights: float64 ``(images, k)``.
        """
        return self._merged(self._slots, weights)

    def single(self, place: int) -> dict[str, Factors]:
        """Return the adapter in one place of each image; where it has fewer, some other one."""
        slots = self._slots[:, place : place + 1]
        return self._merged(slots, np.ones(slots.shape))

    def _merged(self, slots: np.ndarray, weights: np.ndarray) -> dict[str, Factors]:
        if (slots == slots[:1]).all() and (weights == weights[:1]).all():
            slots, weights = slots[:1], weights[:1]
        device = self.denoiser.device
        which, much = torch.from_numpy(slots).to(device), torch.from_numpy(weights).float().to(device)
        return {name: merged(factors, which, much) for name, factors in self._factors.items()}

    def predict(self, samples: Tensor, timestep: Tensor, factors: Mapping[str, Factors]) -> Tensor:
        """Predict once for all images, each with its adapter, guided."""
        require_one_image_per_label(samples, self.images)
        # With and without its class, an image lies in two rows behind one another, which share its adapter.
        inputs = samples.repeat_interleave(2, dim=0) if self.guided else samples
        with ALONE, adapted(self.layers, factors, self.lora.scale):
            predicted = self.denoiser.predict(inputs, timestep, self.labels)
        if not self.guided:
            return predicted
        with_class, without = predicted.unflatten(0, (-1, 2)).unbind(dim=1)
        return without + self.guidance_scale * (with_class - without)


class MergedPrediction:
    """Predict with one adapter for each image, which may be a weighted sum: one evaluation of the network."""

    def __init__(self, network: AdaptedNetwork, chosen: ChosenAdapters) -> None:
        self.network, self.factors = network, network.merged(chosen.weights)

    @torch.no_grad()
    def __call__(self, samples: Tensor, timestep: Tensor) -> Tensor:
        """Map noisy images ``(images, channels, height, width)`` to the prediction."""
        return self.network.predict(samples, timestep, self.factors)
