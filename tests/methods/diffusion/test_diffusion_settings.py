"""Settings that all methods for diffusion models share, and their conversion from sums over pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingModel, copy_of_denoiser
from gen_unlearn.methods.diffusion.settings import DiffusionSettings
from gen_unlearn.methods.unlearn_data import UnlearnData

PIXELS = 16


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "weight_decay": 0.1, "clip": 20.0, "betas": (0.95, 0.99), "eps": 0.1},
        {"optimizer": "adam", "weight_decay": 0.1, "clip": None, "eps": 0.1},
    ],
)
def test_means_take_the_steps_of_sums(
    settings: dict[str, Any], tiny_denoising_model: DenoisingModel, request_data: UnlearnData
) -> None:
    """The loss of the first is a sum over pixels: the mean, times their number."""
    summed = DiffusionSettings(steps=3, lr=1e-3, batch_retain=6, **settings)
    found = []
    for method, factor in ((summed, PIXELS), (summed.from_sums(PIXELS), 1), (summed, 1)):
        student = copy_of_denoiser(tiny_denoising_model, Accelerator(cpu=True))
        term = method.drawn_retain(request_data.retain, method.retain_loss(0), factor)
        method.train(student, [[term]], accelerator=Accelerator(cpu=True), seed=0, budget=Budget())
        before = torch.nn.utils.parameters_to_vector(tiny_denoising_model.parameters())
        found.append((torch.nn.utils.parameters_to_vector(student.parameters()) - before).detach())
    published, converted, taken_as_it_is = found
    assert (converted - published).norm() < 1e-3 * published.norm()
    assert (taken_as_it_is - published).norm() > 1e-2 * published.norm()


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"betas": (0.9, 1.0)}, {"eps": 0.0}, {"steps": -1}, {"label_dropout": 1.0}):
        with pytest.raises(ValueError, match=f"expected {next(iter(settings))}"):
            DiffusionSettings(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got sgd"):
        DiffusionSettings(optimizer="sgd").from_sums(PIXELS)
