"""Tiny frozen denoisers and random LoRA adapters of them."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel, UNet2DModel

from gen_unlearn.adapters.family import AdapterState
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.models.frozen_denoiser import Network
from gen_unlearn.models.stacked_lora import DOWN, UP, factor_shapes, lora_layers
from gen_unlearn.pipelines.noise_config import NoiseConfig

CLASSES = 3
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv")
"""With ``conv``, those that halve and double the size of an image."""


def tiny_network(embeddings: int | None = CLASSES + 1, seed: int = 0) -> UNet2DModel:
    """Make a network for grey images of 8x8 pixels, with attention."""
    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=embeddings,
    )
    return network.eval().requires_grad_(False)


def tiny_text_network(seed: int = 0) -> UNet2DConditionModel:
    """Make a text-to-image network for 8x8 pixels."""
    torch.manual_seed(seed)
    network = UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=8,
    )
    return network.eval().requires_grad_(False)


def tiny_noise() -> DDPMScheduler:
    """Make the noise schedule of the tiny networks."""
    return NoiseConfig(num_train_timesteps=100).build()


def random_adapter(network: Network, lora: LoraConfig, seed: int) -> AdapterState:
    """Draw both factors of an adapter: it adds about as much as each layer gives."""
    draw = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}
    for name, layer in lora_layers(network, lora.targets).items():
        down, up = factor_shapes(layer, lora.rank)
        fan = int(np.prod(down[1:]))
        state[name + DOWN] = (draw.standard_normal(down) * fan**-0.5).astype(np.float32)
        state[name + UP] = (draw.standard_normal(up) * 0.5).astype(np.float32)
    return state
