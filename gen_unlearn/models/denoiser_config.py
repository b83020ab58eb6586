"""The settings of a denoiser's network."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from gen_unlearn.generator_ensemble_config import BackboneKind, LoraEnsembleConfig, RouterConfig

FusionKind = Literal["dot-product", "additive"]

DenoiserKind = Literal["semi-parametric", "class-conditional", "adapter-ensemble"]


@dataclass(frozen=True)
class DenoiserConfig:
    """A denoiser's architecture; the image shape and the number of classes come from the data.

    Attributes:
        kind: ``"semi-parametric"`` looks at exemplars; ``"class-conditional"`` is the plain UNet of the same
            size with a class embedding; ``"adapter-ensemble"`` is a frozen one of either kind, or one that is
            given, with many LoRA adapters, of which each image is generated with one.
        down_block_types: diffusers block names, encoder from outside to inside.
        up_block_types: diffusers block names, decoder from inside to outside.
        block_out_channels: channels of each resolution.
        layers_per_block: residual blocks per resolution.
        attention_head_dim: channels per head of the UNet's own attention.
        norm_num_groups: groups of every group normalisation.
        dropout: dropout of the residual blocks.
        resnet_time_scale_shift: ``"default"`` or ``"scale_shift"``.
        label_embedding: embed permuted label slots in the semi-parametric queries, as in the paper.
        fusion_type: ``"dot-product"`` or ``"additive"``.
        fusion_heads: heads of the dot-product fusion.
        fusion_residual: add the fusion's result to the bottleneck instead of replacing it.
        pixel_fusion_width: also start from what the exemplars alone predict, by kernels of this width over
            pixels in [-1, 1]; 0 does not. It is what makes exemplars of a class matter that the weights
            never saw.
        backbone: of an adapter ensemble: the kind of the frozen network, which is trained on the public core.
        weights: of an adapter ensemble: local folder of a diffusers pipeline or UNet to use instead, which
            must never have seen a deletable image. Its settings count then, and those of the network here
            say nothing; `noise` does only if the folder has no scheduler.
        prompt: of an adapter ensemble on a text-to-image pipeline: what an image shows; ``{}`` is the class.
        router: of an adapter ensemble: what tells which adapters an image goes to.
        adapters: of an adapter ensemble.
    """

    kind: DenoiserKind
    block_out_channels: tuple[int, ...] = ()
    down_block_types: tuple[str, ...] = ()
    up_block_types: tuple[str, ...] = ()
    layers_per_block: int = 2
    attention_head_dim: int = 8
    norm_num_groups: int = 32
    dropout: float = 0.0
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    label_embedding: bool = False
    fusion_type: FusionKind = "dot-product"
    fusion_heads: int = 4
    fusion_residual: bool = False
    pixel_fusion_width: float = 0.0
    backbone: BackboneKind = "class-conditional"
    weights: str | None = None
    prompt: str = "a photo of a {}"
    router: RouterConfig = field(default_factory=RouterConfig)
    adapters: LoraEnsembleConfig = field(default_factory=LoraEnsembleConfig)

    def __post_init__(self) -> None:
        if self.weights is not None and self.kind != "adapter-ensemble":
            raise ValueError(
                f"model.weights is for a frozen backbone: set model.kind to adapter-ensemble, got {self.kind}"
            )
        if not self.block_out_channels and self.weights is None:
            raise ValueError("expected model.block_out_channels, the channels of each resolution, got none")
        if self.prompt.count("{}") != 1:
            raise ValueError(f"expected model.prompt with one {{}} for the class, got {self.prompt!r}")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels {list(self.block_out_channels)} must be multiples of "
                    f"norm_num_groups ({self.norm_num_groups})"
                )
        if self.pixel_fusion_width < 0:
            raise ValueError(f"pixel_fusion_width must be at least 0, got {self.pixel_fusion_width}")
        levels = {len(self.block_out_channels), len(self.down_block_types), len(self.up_block_types)}
        if len(levels) != 1:
            raise ValueError(
                "block_out_channels, down_block_types and up_block_types must have the same length, got "
                f"{len(self.block_out_channels)}, {len(self.down_block_types)}, {len(self.up_block_types)}"
            )

    @property
    def of_backbone(self) -> DenoiserConfig:
        """The network that is trained: of an adapter ensemble its backbone."""
        return replace(self, kind=self.backbone) if self.kind == "adapter-ensemble" else self
