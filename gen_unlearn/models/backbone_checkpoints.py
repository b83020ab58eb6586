"""Load a diffusers UNet or pipeline from a local folder as a frozen denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusers import DDPMScheduler, UNet2DConditionModel

from gen_unlearn.models.diffusers_folders import (
    folders_of_parts,
    load_schedule,
    load_text_encoder,
    load_unet,
    load_vae,
)
from gen_unlearn.models.frozen_denoiser import FrozenDenoiser
from gen_unlearn.models.semiparametric_denoiser import freeze
from gen_unlearn.models.text_conditioning import ClassPrompts, class_prompts


def load_backbone_checkpoint(
    folder: Path,
    class_names: Sequence[str],
    image_shape: tuple[int, int, int],
    noise: DDPMScheduler | None = None,
    prompt: str = "a photo of a {}",
) -> FrozenDenoiser:
    """Load a denoiser of diffusers in float32, on the CPU. Nothing is downloaded, no code of the folder runs.

    A folder of a UNet has ``config.json`` and safetensors. One of a pipeline has ``model_index.json`` and
    folders ``unet``, perhaps ``scheduler``, perhaps ``vae``, and for text-to-image ``text_encoder`` and
    ``tokenizer``, in the layout of Stable Diffusion. Other parts that compute are refused.

    Args:
        folder: local folder, as `save_pretrained` writes it.
        class_names: of the images; a UNet with class embeddings must have as many, or one more, the null
            class, in this order.
        image_shape: height, width and channels of the images.
        noise: the noise schedule of a UNet; a pipeline's own goes before.
        prompt: of text-to-image networks: what an image shows; ``{}`` is the class.

    Raises:
        ValueError: files are missing or broken, the folder holds something else, or it does not fit the data.
    """
    parts = folders_of_parts(folder)
    network = load_unet(parts["unet"])
    prompts = None
    if isinstance(network, UNet2DConditionModel):
        prompts = _prompts(folder, parts, class_names, prompt)
    vae = load_vae(parts["vae"]) if "vae" in parts else None
    schedule = load_schedule(parts["scheduler"], clip_sample=vae is None) if "scheduler" in parts else noise
    if schedule is None:
        raise ValueError(
            f"expected the folder scheduler in {folder}, which says what noise the network was trained with, "
            "found none; add it, or name the noise schedule"
        )
    try:
        denoiser = freeze(network, schedule, len(class_names), vae, prompts)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    _require_shape(denoiser, image_shape, folder)
    return denoiser


def _prompts(folder: Path, parts: dict[str, Path], class_names: Sequence[str], prompt: str) -> ClassPrompts:
    """Encode the prompts with the text encoder of a pipeline, which is not needed any more then."""
    for name in ("text_encoder", "tokenizer"):
        if name not in parts:
            raise ValueError(
                f"expected a {name} beside the text-to-image UNet in {folder}, found none; name the folder "
                "of the whole pipeline, with its model_index.json"
            )
    text_encoder, tokenizer = load_text_encoder(parts["text_encoder"], parts["tokenizer"])
    return class_prompts(text_encoder, tokenizer, class_names, prompt)


def _require_shape(denoiser: FrozenDenoiser, image_shape: tuple[int, int, int], folder: Path) -> None:
    """Raise a ValueError unless the denoiser is one of images of this shape."""
    if denoiser.image_shape == tuple(image_shape):
        return
    height, width, channels = denoiser.image_shape
    got = " x ".join(str(length) for length in image_shape)
    raise ValueError(
        f"expected images of {height} x {width} x {channels} for the denoiser in {folder}, got {got}; set "
        f"data.image_size to {height} and data.channels to {channels}, or choose another denoiser"
    )
