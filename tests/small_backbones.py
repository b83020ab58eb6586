"""Tiny frozen denoisers of every kind, with fresh weights, and a pipeline on disk, that tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from gen_unlearn.models.frozen_denoiser import FrozenDenoiser
from gen_unlearn.models.semiparametric_denoiser import SemiParametricDenoiser
from gen_unlearn.models.text_conditioning import ClassPrompts, class_prompts
from gen_unlearn.models.unet import SemiParametricUNet2DModel

NAMES = ("cat", "dog", "car")
TEMPLATE = "a photo of a {}"
TOKENS = 10
DIM = 16
BLOCKS: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


def noise() -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=100)


def plain_unet(**settings: Any) -> UNet2DModel:
    """Make a plain network of grey 8x8 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = {
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        }
        sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "attention_head_dim": 8}
        return UNet2DModel(**(BLOCKS | blocks | sizes | settings)).eval()


def conditional_unet(**settings: Any) -> UNet2DConditionModel:
    """Make a text-to-image network of 4x4 latents of 4 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = {
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
        sizes = {"sample_size": 4, "in_channels": 4, "out_channels": 4, "attention_head_dim": 2}
        return UNet2DConditionModel(
            **(BLOCKS | blocks | sizes | {"cross_attention_dim": DIM} | settings)
        ).eval()


def tiny_vae(**settings: Any) -> AutoencoderKL:
    """Make an autoencoder that halves height and width, to 4 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        sizes: dict[str, Any] = {
            "in_channels": 1,
            "out_channels": 1,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "block_out_channels": (8, 8),
            "latent_channels": 4,
            "norm_num_groups": 4,
            "sample_size": 8,
            "scaling_factor": 0.5,
        }
        return AutoencoderKL(**(sizes | settings)).eval()


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write the files of a tokenizer that knows a few words, and read it."""
    folder.mkdir(parents=True, exist_ok=True)
    merges, words = [], ["a", "of", "photo", *NAMES]
    vocabulary = ["<|startoftext|>", "<|endoftext|>"]
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        vocabulary += parts
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts = [parts[0] + parts[1], *parts[2:]]
            vocabulary.append(parts[0])
    numbers = {token: number for number, token in enumerate(dict.fromkeys(vocabulary))}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=TOKENS)


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Make a text encoder for a tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=DIM,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        return CLIPTextModel(config).eval()


def tiny_prompts(folder: Path) -> ClassPrompts:
    """Encode the prompts of the three classes."""
    tokenizer = tiny_tokenizer(folder)
    return class_prompts(tiny_text_encoder(tokenizer), tokenizer, NAMES, TEMPLATE)


def text_denoiser(folder: Path) -> FrozenDenoiser:
    """Make a text-to-image denoiser of grey 8x8 images."""
    return FrozenDenoiser(conditional_unet(), noise(), len(NAMES), tiny_vae(), tiny_prompts(folder))


def spm_unet(**settings: Any) -> SemiParametricUNet2DModel:
    """Make a semi-parametric network of grey 8x8 images; its null token is not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "num_train_timesteps": 100}
        unet = SemiParametricUNet2DModel(**(BLOCKS | sizes | settings))
        torch.nn.init.normal_(unet.fusion.null_key)
        torch.nn.init.normal_(unet.fusion.null_value)
        if unet.pixel_fusion is not None:
            unet.pixel_fusion.set_noise_schedule(noise().alphas_cumprod)
        return unet.eval()


def spm_denoiser(**settings: Any) -> SemiParametricDenoiser:
    """Make a semi-parametric denoiser of three classes."""
    return SemiParametricDenoiser(spm_unet(**settings), noise(), len(NAMES))


def save_text_pipeline(folder: Path) -> None:
    """Save a text-to-image pipeline of grey 8x8 images, with a scheduler that samples in few steps."""
    tokenizer = tiny_tokenizer(folder.with_name("words"))
    StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=conditional_unet(),
        scheduler=PNDMScheduler(
            num_train_timesteps=100,
            beta_schedule="scaled_linear",
            beta_start=0.001,
            steps_offset=1,
            skip_prk_steps=True,
            prediction_type="v_prediction",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
