"""A frozen semi-parametric denoiser: adapters in its decoder, exemplars through its encoder."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor

from gen_unlearn.bank import ExemplarBank
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.models.denoiser_checks import Network
from gen_unlearn.models.frozen_denoiser import NULL_CLASS, FrozenDenoiser
from gen_unlearn.models.fusion import NULL_GROUP, ExemplarTokens, FusionContext, plan_fusion
from gen_unlearn.models.text_conditioning import ClassPrompts
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pixels import to_model_input

_DECODER = re.compile(r"unet\.(up_blocks|mid_block\.attentions|mid_block\.resnets\.[1-9]\d*|conv_out)(\.|$)")

_EXEMPLARS = 32
_ENCODED_AT_ONCE = 256


class _Drawn(NamedTuple):
    """What is drawn from while sampling: the exemplars, how many for each image, with which seeds."""

    store: ExemplarStore
    bank: ExemplarBank
    most: int
    seeds: list[int]


class SemiParametricDenoiser(FrozenDenoiser):
    """A frozen semi-parametric network.

    Adapters sit in its decoder alone, behind the fusion: exemplars pass the encoder, so what they are encoded
    to depends on no adapter. In training an image looks at other members of its adapter and class. Without a
    class, or where none of its exemplars is left, a row gets the null token, never another class.

    Args:
        network: the network.
        noise: the noise schedule that it was trained with.
        classes: number of classes that images have.

    Raises:
        ValueError: the network was made for other label slots or another noise schedule.
    """

    network: SemiParametricUNet2DModel
    exemplars_per_image = _EXEMPLARS

    def __init__(self, network: SemiParametricUNet2DModel, noise: DDPMScheduler, classes: int) -> None:
        super().__init__(network, noise, classes)
        slots = network.label_slots
        if slots is not None and slots < classes:
            raise ValueError(f"expected a network of at least {classes} label slots, got one of {slots}")
        if network.pixel_fusion is not None:
            signal = network.pixel_fusion.signal.float().cpu()
            if signal.shape != noise.alphas_cumprod.shape or not torch.allclose(
                signal, noise.alphas_cumprod.float().cpu(), rtol=0, atol=1e-6
            ):
                raise ValueError(
                    "expected the noise schedule that the network's pixel fusion was made for, got another; "
                    "load the scheduler that was saved with the network"
                )
        self._bank: ExemplarBank | None = None
        self._drawn: _Drawn | None = None
        self._contexts: dict[bytes, FusionContext | None] = {}

    @property
    def has_null_class(self) -> bool:
        """True: without exemplars there is the null token."""
        return True

    def adaptable(self, layer: str) -> bool:
        """Tell whether a layer belongs to the decoder."""
        return _DECODER.match(layer) is not None

    def require_stack(self, stack: int) -> None:
        """Raise a ValueError for more than one: the fusion pads its exemplars over the whole batch."""
        if stack != 1:
            raise ValueError(
                f"expected adapters of a semi-parametric backbone to be trained one by one, got a stack of "
                f"{stack}, in which they would change each other's last bits; set stack to 1"
            )

    def predict(
        self, noisy: Tensor, timesteps: Tensor, labels: np.ndarray, context: FusionContext | None = None
    ) -> Tensor:
        """Predict as `FrozenDenoiser.predict` does, beside `context` or what `with_exemplars` draws."""
        if context is None and self._drawn is not None:
            context = self._drawn_context(labels)
        unet = self.network
        encoded = unet.encode(noisy, timesteps, self._slots(labels, context))
        return unet.decode(unet.fuse(encoded, context))

    @torch.no_grad()
    def tokens(self, pixels: np.ndarray) -> ExemplarTokens:
        """Encode uint8 images ``(n, height, width, channels)`` as exemplars."""
        chunks = to_model_input(pixels).split(_ENCODED_AT_ONCE)
        parts = [self.network.encode_exemplars(chunk.to(self.device, self.network.dtype)) for chunk in chunks]
        joined = [torch.cat(part) for part in zip(*(part[:2] for part in parts), strict=True)]
        pixels_seen = [part.pixels for part in parts if part.pixels is not None]
        return ExemplarTokens(joined[0], joined[1], torch.cat(pixels_seen) if pixels_seen else None)

    @torch.no_grad()
    def beside(self, tokens: ExemplarTokens | None, chosen: Sequence[np.ndarray]) -> FusionContext | None:
        """Return what rows look at: of each row the indices of its exemplars, perhaps none."""
        return self._context(tokens, range(len(chosen)), chosen)

    @torch.no_grad()
    def with_exemplars(self, store: ExemplarStore | None, count: int, seeds: Sequence[int]) -> Self:
        """Return what samples with the exemplars that are left, see `FrozenDenoiser.with_exemplars`.

        They are encoded once, and those of an earlier call that are gone are dropped here. Adapters may be
        in place: none of them changes what exemplars are encoded to.
        """
        if count < 1:
            raise ValueError(f"expected at least 1 exemplar per class, got {count}")
        self._bank = None if store is None else ExemplarBank.build(store, self.network, self._bank)
        view = copy.copy(self)
        view._contexts = {}
        view._drawn = None
        if store is not None and self._bank is not None:
            view._drawn = _Drawn(store, self._bank, count, list(seeds))
        return view

    def _drawn_context(self, labels: np.ndarray) -> FusionContext | None:
        """Draw the exemplars of rows, once for all denoising steps; equal draws share their keys."""
        key = labels.tobytes()
        if key not in self._contexts:
            assert self._drawn is not None
            store, bank, most, seeds = self._drawn
            if not seeds or len(labels) % len(seeds):
                raise ValueError(
                    f"expected rows for {len(seeds)} exemplar seeds, or a multiple, got {len(labels)}"
                )
            drawn = list(zip(labels.tolist(), seeds * (len(labels) // len(seeds)), strict=True))
            groups = sorted({pair for pair in drawn if pair[0] != NULL_CLASS})
            place = {pair: group for group, pair in enumerate(groups)}
            members = [store.draw(label, most, seed) for label, seed in groups]
            self._contexts[key] = self._context(
                bank.tokens, [place.get(pair, NULL_GROUP) for pair in drawn], members
            )
        return self._contexts[key]

    def _context(
        self, tokens: ExemplarTokens | None, groups: Sequence[int], members: Sequence[np.ndarray]
    ) -> FusionContext | None:
        plan = plan_fusion(np.asarray(groups, dtype=np.int64), members)
        if tokens is None or not len(plan.slots):
            return None
        with torch.no_grad():
            return self.network.fusion.context(tokens, plan.to(self.device))

    def _slots(self, labels: np.ndarray, context: FusionContext | None) -> Tensor | None:
        """Return the label slot of each row, for networks that take one: the null slot without exemplars."""
        null = self.network.label_slots
        if null is None:
            return None
        known = torch.from_numpy(np.where(labels == NULL_CLASS, null, labels)).to(self.device)
        if context is None:
            return torch.full_like(known, null)
        return torch.where(context.cells < context.slots.numel(), known, null)


def freeze(
    network: Network,
    noise: DDPMScheduler,
    classes: int,
    vae: AutoencoderKL | None = None,
    prompts: ClassPrompts | None = None,
) -> FrozenDenoiser:
    """Make the frozen denoiser of a network of any kind; see `FrozenDenoiser`.

    Raises:
        ValueError: the parts do not belong together.
    """
    if not isinstance(network, SemiParametricUNet2DModel):
        return FrozenDenoiser(network, noise, classes, vae, prompts)
    if vae is not None or prompts is not None:
        raise ValueError(
            "expected a semi-parametric network alone, got an autoencoder or prompts with it; leave them out"
        )
    return SemiParametricDenoiser(network, noise, classes)
