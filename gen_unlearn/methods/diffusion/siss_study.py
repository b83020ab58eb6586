"""The two studies of SISS (arXiv 2503.01034) on ordinary images, whose settings its baselines share."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from gen_unlearn.methods.diffusion.preset import Preset
from gen_unlearn.methods.diffusion.settings import DiffusionSettings

SettingsT = TypeVar("SettingsT", bound=DiffusionSettings)


def study_presets(celeba: SettingsT, shirt: SettingsT) -> dict[str, Preset[SettingsT]]:
    """Return the presets of a method for both studies; the losses of the study are sums over pixels.

    CelebA-HQ is ``google/ddpm-celebahq-256`` with single faces to forget, 60 steps for each; its batches of
    64 were made of 16 parts. MNIST with a T-shirt is a `UNet2DModel` of (64, 128, 256) channels that saw one
    T-shirt again and again. Both use AdamW without label dropout.

    Args:
        celeba: what is particular to the method, with published numbers.
        shirt: the same for the other study.
    """
    return {
        "celeba-hq-256": _converted(celeba, lr=5e-6, steps=60, pixels=3 * 256**2),
        "mnist-t-shirt": _converted(shirt, lr=5e-5, steps=300, pixels=28**2),
    }


def _converted(method: SettingsT, *, lr: float, steps: int, pixels: int) -> Preset[SettingsT]:
    shared = replace(
        method,
        lr=lr,
        steps=steps,
        optimizer="adamw",
        betas=(0.95, 0.999),
        weight_decay=1e-6,
        batch_forget=64,
        batch_retain=64,
        clip=1.0,
        label_dropout=0.0,
    )
    return Preset(shared.from_sums(pixels), "arXiv 2503.01034", "sum", pixels)
