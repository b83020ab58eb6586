"""What a network must be for adapters to be trained on it."""

from __future__ import annotations

from typing import TypeAlias

from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel

from gen_unlearn.models.text_conditioning import ClassPrompts
from gen_unlearn.models.unet import SemiParametricUNet2DModel

Network: TypeAlias = UNet2DModel | UNet2DConditionModel | SemiParametricUNet2DModel

_EXTRAS = ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type", "time_cond_proj_dim")
"""Settings of networks that take conditions besides a class or a prompt."""


def require_plain_network(network: Network, vae: AutoencoderKL | None) -> None:
    """Raise a ValueError unless a network takes noise, time and a condition, and predicts one image.

    Args:
        network: the network.
        vae: the autoencoder that its images come from, or `None`.
    """
    config = network.config
    extras = [name for name in _EXTRAS if config.get(name) is not None]
    if isinstance(network, UNet2DConditionModel) and config.get("num_class_embeds") is not None:
        extras.append("num_class_embeds")
    if extras:
        raise ValueError(
            f"expected a denoiser that takes nothing but noise, time and a class or a prompt, got one with "
            f"{', '.join(extras)}, as SDXL has; choose one in the layout of Stable Diffusion 1 or 2"
        )
    if config.out_channels != config.in_channels:
        raise ValueError(
            f"expected a denoiser that gives as many channels as it takes, got one that takes "
            f"{config.in_channels} and gives {config.out_channels}; choose one that predicts no variance and "
            "takes no mask"
        )
    if config.sample_size is None:
        raise ValueError("expected a denoiser with a sample_size, got none; set it in its config.json")
    if vae is not None and vae.config.latent_channels != config.in_channels:
        raise ValueError(
            f"expected an autoencoder of {config.in_channels} latent channels, as the denoiser takes, got "
            f"one of {vae.config.latent_channels}; take both from one pipeline"
        )


def require_conditions(network: Network, prompts: ClassPrompts | None, classes: int) -> None:
    """Raise a ValueError unless class embeddings, or prompts, are those of so many classes."""
    if isinstance(network, UNet2DConditionModel) != (prompts is not None):
        raise ValueError(
            f"expected prompts for a UNet2DConditionModel, and for nothing else, got a "
            f"{type(network).__name__} {'without' if prompts is None else 'with'} prompts; make them with "
            "gen_unlearn.models.text_conditioning.class_prompts"
        )
    if prompts is not None:
        prompts.require(classes, network.config.cross_attention_dim)
        return
    embeddings = network.config.get("num_class_embeds")
    if embeddings is not None and embeddings not in (classes, classes + 1):
        raise ValueError(
            f"expected a denoiser of the {classes} classes of the images, and perhaps a null class behind "
            f"them, got one of {embeddings} class embeddings; choose one that was trained with these classes "
            "in this order, or an unconditional one"
        )
