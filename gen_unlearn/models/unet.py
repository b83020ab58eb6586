"""The semi-parametric denoiser: a diffusers UNet whose bottleneck is made of exemplars."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from gen_unlearn.models.denoiser_config import FusionKind
from gen_unlearn.models.fusion import (
    AdditiveFusionBlock,
    ExemplarTokens,
    FusionBlock,
    FusionContext,
    FusionPlan,
)
from gen_unlearn.models.pixel_fusion import PixelFusion


class EncodedSample(NamedTuple):
    """What the encoder half of the UNet hands to the decoder half.

    Attributes:
        features: the bottleneck, ``(batch, channels, height, width)``.
        skips: the skip connections, outermost first.
        embedding: the time (and label) embedding, ``(batch, embedding)``.
        sample: what was encoded.
        timesteps: int64 ``(batch,)``.
        noise: what pixel fusion predicts, which the decoder adds to; `None` without it.
    """

    features: Tensor
    skips: tuple[Tensor, ...]
    embedding: Tensor
    sample: Tensor
    timesteps: Tensor
    noise: Tensor | None = None


class SemiParametricUNet2DModel(ModelMixin, ConfigMixin):
    """Denoise images with a UNet that takes its bottleneck from exemplars (arXiv 2603.22870).

    The network is ``decode(fuse(encode(sample)))``: the encoder of a diffusers `UNet2DModel` (down to the
    first block of its middle), a `FusionBlock` over the encoded exemplars, and the rest of the UNet. The
    exemplars pass the same encoder, clean and with timestep 0, without gradient. By default class identity
    reaches the network only through the exemplars.

    Args:
        sample_size: height and width of the images.
        in_channels: channels of the images.
        out_channels: channels of the prediction.
        down_block_types: diffusers block names, encoder from outside to inside.
        up_block_types: diffusers block names, decoder from inside to outside.
        block_out_channels: channels of each resolution.
        layers_per_block: residual blocks per resolution.
        attention_head_dim: channels per head of the UNet's own attention.
        norm_num_groups: groups of every group normalisation.
        dropout: dropout of the residual blocks; exemplars are encoded without it.
        resnet_time_scale_shift: ``"default"`` adds the time embedding, ``"scale_shift"`` modulates with it.
        num_label_slots: size of an extra label embedding for queries, or `None` for no label embedding (the
            default). Slot `num_label_slots` is the null label, which exemplars get.
        fusion_type: ``"dot-product"`` or ``"additive"`` attention.
        fusion_heads: heads of the dot-product fusion.
        fusion_residual: add the fusion's result to the bottleneck instead of replacing it.
        pixel_fusion_width: kernel width of a `PixelFusion`; 0 for none.
        num_train_timesteps: length of the noise schedule; only matters to pixel fusion.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D"),
        up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: tuple[int, ...] = (64, 128),
        layers_per_block: int = 2,
        attention_head_dim: int = 8,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        resnet_time_scale_shift: str = "default",
        num_label_slots: int | None = None,
        fusion_type: FusionKind = "dot-product",
        fusion_heads: int = 4,
        fusion_residual: bool = False,
        pixel_fusion_width: float = 0.0,
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__()
        if any(name.startswith("Skip") for name in (*down_block_types, *up_block_types)):
            raise ValueError("blocks with image skips (SkipDownBlock2D, ...) cannot be split for the fusion")
        self.unet = UNet2DModel(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=tuple(down_block_types),
            up_block_types=tuple(up_block_types),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            attention_head_dim=attention_head_dim,
            norm_num_groups=norm_num_groups,
            dropout=dropout,
            resnet_time_scale_shift=resnet_time_scale_shift,
            num_class_embeds=None if num_label_slots is None else num_label_slots + 1,
        )
        _spare_exemplars(self.unet)
        self.fusion = _build_fusion(
            fusion_type, block_out_channels[-1], fusion_heads, norm_num_groups, fusion_residual
        )
        self.pixel_fusion: PixelFusion | None = None
        if pixel_fusion_width:
            self.pixel_fusion = PixelFusion(
                in_channels, block_out_channels[0], pixel_fusion_width, num_train_timesteps
            )

    @property
    def label_slots(self) -> int | None:
        """Number of label slots, or `None` when the network takes no label."""
        return self.config.num_label_slots

    def encode(
        self, sample: Tensor, timestep: Tensor | int, class_labels: Tensor | None = None
    ) -> EncodedSample:
        """Run the encoder and the first middle block.

        Args:
            sample: ``(batch, channels, height, width)`` in [-1, 1] plus noise.
            timestep: integer timesteps, one for all or ``(batch,)``.
            class_labels: int64 ``(batch,)`` label slots; only with `num_label_slots`.
        """
        unet = self.unet
        if not isinstance(timestep, Tensor):
            timestep = torch.full((), timestep, device=sample.device)
        timesteps = timestep.to(sample.device).expand(sample.shape[0])
        embedding = unet.time_embedding(unet.time_proj(timesteps).to(sample.dtype))
        if unet.class_embedding is not None:
            if class_labels is None:
                class_labels = torch.full(
                    (sample.shape[0],), self.config.num_label_slots, device=sample.device
                )
            embedding = embedding + unet.class_embedding(class_labels).to(sample.dtype)
        elif class_labels is not None:
            raise ValueError("this network takes no class labels; build it with num_label_slots to use them")
        features = unet.conv_in(sample)
        skips: tuple[Tensor, ...] = (features,)
        for block in unet.down_blocks:
            features, block_skips = block(hidden_states=features, temb=embedding)
            skips += block_skips
        features = unet.mid_block.resnets[0](features, embedding)
        return EncodedSample(features, skips, embedding, sample, timesteps)

    def fuse(self, encoded: EncodedSample, context: FusionContext | None) -> EncodedSample:
        """Fuse exemplars into the bottleneck; `None` means the null token for every query."""
        features, skips, noise = self.fusion(encoded.features, context), encoded.skips, None
        if self.pixel_fusion is not None:
            seen, noise = self.pixel_fusion(encoded.sample, encoded.timesteps, context)
            skips = (skips[0] + seen, *skips[1:])
        return EncodedSample(features, skips, encoded.embedding, encoded.sample, encoded.timesteps, noise)

    def decode(self, encoded: EncodedSample) -> Tensor:
        """Run the rest of the middle and the decoder; ``(batch, out_channels, height, width)``."""
        unet = self.unet
        features, skips, embedding = encoded.features, encoded.skips, encoded.embedding
        for attention, resnet in zip(unet.mid_block.attentions, unet.mid_block.resnets[1:], strict=True):
            if attention is not None:
                features = attention(features, temb=embedding)
            features = resnet(features, embedding)
        for block in unet.up_blocks:
            taken = len(block.resnets)
            features = block(features, skips[-taken:], embedding)
            skips = skips[:-taken]
        prediction = unet.conv_out(unet.conv_act(unet.conv_norm_out(features)))
        return prediction if encoded.noise is None else prediction + encoded.noise

    @torch.no_grad()
    def exemplar_features(self, images: Tensor) -> Tensor:
        """Return the bottleneck of clean exemplars, without dropout, at timestep 0 and without gradient.

        Args:
            images: ``(exemplars, channels, height, width)`` in [-1, 1].
        """
        if len(images):
            return self.encode(images, 0).features
        side = images.shape[2] // 2 ** (len(self.config.block_out_channels) - 1)
        return images.new_zeros(0, self.config.block_out_channels[-1], side, side)

    def encode_exemplars(self, images: Tensor, features: Tensor | None = None) -> ExemplarTokens:
        """Encode clean exemplars to the tokens of the fusion, whose projections alone learn from them.

        Args:
            images: ``(exemplars, channels, height, width)`` in [-1, 1].
            features: their `exemplar_features`, if they are known.
        """
        tokens = self.fusion.encode(self.exemplar_features(images) if features is None else features)
        return tokens if self.pixel_fusion is None else tokens._replace(pixels=images)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        exemplars: Tensor | None = None,
        plan: FusionPlan | None = None,
        class_labels: Tensor | None = None,
        features: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict the noise in `sample`, encoding the exemplars on the way: the form used in training.

        Sampling encodes the exemplars once, into a bank, and calls `encode`, `fuse` and `decode`.

        Args:
            sample: noisy images, ``(batch, channels, height, width)``.
            timestep: integer timesteps, one for all or ``(batch,)``.
            exemplars: clean images in [-1, 1], ``(exemplars, channels, height, width)``.
            plan: which query attends to which exemplar; without it every query gets the null token.
            class_labels: int64 ``(batch,)`` label slots; only with `num_label_slots`.
            features: `exemplar_features` of the exemplars, if they are known.
            return_dict: return a `UNet2DOutput` instead of a tuple.
        """
        if (exemplars is None) != (plan is None):
            raise ValueError("exemplars and plan belong together; pass both or neither")
        # The queries first: autocast keeps the weights that it casts, and those cast without gradient, as for
        # the exemplars, would serve the queries too.
        encoded = self.encode(sample, timestep, class_labels)
        context = None
        if exemplars is not None and plan is not None:
            context = self.fusion.context(self.encode_exemplars(exemplars, features), plan)
        prediction = self.decode(self.fuse(encoded, context))
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)


def _build_fusion(
    kind: FusionKind, channels: int, heads: int, norm_groups: int, residual: bool
) -> FusionBlock:
    """Build the fusion block that a configuration names."""
    if kind == "dot-product":
        return FusionBlock(channels, heads, norm_groups, residual)
    if kind == "additive":
        return AdditiveFusionBlock(channels, norm_groups, residual)
    raise ValueError(f"expected fusion 'dot-product' or 'additive', got {kind!r}")


class _LearningDropout(nn.Dropout):
    """Drop only where a gradient is recorded: exemplars, which are encoded without one, pass whole."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training and torch.is_grad_enabled())


def _spare_exemplars(network: nn.Module) -> None:
    """Put a `_LearningDropout` in the place of every dropout of a network."""
    for part in list(network.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(part, name, _LearningDropout(child.p))
