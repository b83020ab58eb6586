"""Build the denoiser that a recipe describes."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DModel

from gen_unlearn.models.denoiser_config import DenoiserConfig
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.noise_config import NoiseConfig


def build_denoiser(
    config: DenoiserConfig,
    image_shape: tuple[int, int, int],
    num_classes: int,
    noise: NoiseConfig | None = None,
) -> SemiParametricUNet2DModel | UNet2DModel:
    """Build a network with fresh weights, drawn from torch's global generator.

    Args:
        config: the architecture.
        image_shape: ``(height, width, channels)``; square, and divisible by 2 at every level but the last.
        num_classes: number of classes.
        noise: the noise schedule that it will be trained with; the usual one if `None`.
    """
    config = config.of_backbone
    height, width, channels = image_shape
    noise = noise or NoiseConfig()
    divisor = 2 ** (len(config.block_out_channels) - 1)
    if height != width or height % divisor:
        raise ValueError(
            f"{len(config.block_out_channels)} levels need square images with a side divisible by {divisor}, "
            f"got {height}x{width}; set data.image_size or use fewer levels"
        )
    architecture: dict[str, Any] = {
        "sample_size": height,
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": config.down_block_types,
        "up_block_types": config.up_block_types,
        "block_out_channels": config.block_out_channels,
        "layers_per_block": config.layers_per_block,
        "attention_head_dim": config.attention_head_dim,
        "norm_num_groups": config.norm_num_groups,
        "dropout": config.dropout,
        "resnet_time_scale_shift": config.resnet_time_scale_shift,
    }
    if config.kind == "class-conditional":
        return UNet2DModel(**architecture, num_class_embeds=num_classes + 1)
    model = SemiParametricUNet2DModel(
        **architecture,
        num_label_slots=num_classes if config.label_embedding else None,
        fusion_type=config.fusion_type,
        fusion_heads=config.fusion_heads,
        fusion_residual=config.fusion_residual,
        pixel_fusion_width=config.pixel_fusion_width,
        num_train_timesteps=noise.num_train_timesteps,
    )
    if model.pixel_fusion is not None:
        model.pixel_fusion.set_noise_schedule(noise.build().alphas_cumprod)
    return model
