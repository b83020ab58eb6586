"""Influence unlearning of a denoiser: the step, its curvature, its cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.curvature import flatten
from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.methods.diffusion.influence import InfluenceDenoiser
from gen_unlearn.methods.diffusion.per_image import denoising_fisher, image_gradients
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.per_sample import chosen_weights
from gen_unlearn.methods.unlearn_data import UnlearnData


def moved(model: nn.Module, found: nn.Module) -> Tensor:
    """Return how far the weights moved, float64."""
    return flatten(chosen_weights(found)) - flatten(chosen_weights(model))


def rows_of(model: DenoisingModel, data: UnlearnData, part: str, role: str) -> Tensor:
    """Return the gradients of all images of a part, one a row, float64."""
    images = getattr(data, part)
    batch = batch_of(images, np.arange(len(images)))
    found = image_gradients(model, batch, seed=0, role=role, draws=2, budget=Budget())
    return torch.cat([one.flatten(1) for one in found.values()], dim=1).double()


def test_the_diagonal_step_is_the_formula(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData, cpu: Accelerator
) -> None:
    model, method = tiny_denoising_model, InfluenceDenoiser(draws=2, damping=0.01, alpha=2.0)
    found = unlearn(method, model, request_data, accelerator=cpu, seed=0).model
    total = rows_of(model, request_data, "forget", "influence forget").sum(0)
    fisher = flatten(
        denoising_fisher(
            model, request_data.retain, seed=0, role="influence curvature", draws=2, budget=Budget()
        )
    )
    expected = 2.0 / 60 * total / (fisher + 0.01)
    torch.testing.assert_close(moved(model, found), expected, rtol=1e-3, atol=1e-6)


def test_the_woodbury_step_solves_the_damped_system(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData, cpu: Accelerator
) -> None:
    model = tiny_denoising_model
    method = InfluenceDenoiser(draws=2, damping=0.01, curvature="fisher_woodbury", alpha=5.0)
    found = unlearn(method, model, request_data, accelerator=cpu, seed=0).model
    step = moved(model, found) / 5.0
    rows = rows_of(model, request_data, "retain", "influence curvature")
    product = rows.T @ (rows @ step) / len(rows) + 0.01 * step
    right = rows_of(model, request_data, "forget", "influence forget").sum(0) / 60
    assert (product - right).norm() < 1e-3 * right.norm()


def test_blocks_of_gradients_change_the_result_by_rounding_alone(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData, cpu: Accelerator
) -> None:
    steps = []
    for held in (2 << 30, 4 * 10_000 * 20):
        method = InfluenceDenoiser(draws=1, curvature="fisher_woodbury", samples=24, block_bytes=held)
        found = unlearn(method, tiny_denoising_model, request_data, accelerator=cpu, seed=0)
        steps.append(moved(tiny_denoising_model, found.model))
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-4, atol=1e-6)


def test_a_seed_decides_on_the_draws(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData, cpu: Accelerator
) -> None:
    method = InfluenceDenoiser(draws=1, samples=8)
    first, again, other = (
        moved(
            tiny_denoising_model,
            unlearn(method, tiny_denoising_model, request_data, accelerator=cpu, seed=seed).model,
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_loss_of_the_forgotten_images_rises(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData, cpu: Accelerator
) -> None:
    method = InfluenceDenoiser(draws=2, damping=0.01)
    found = unlearn(method, tiny_denoising_model, request_data, accelerator=cpu, seed=0).model
    right = rows_of(tiny_denoising_model, request_data, "forget", "influence forget").sum(0)
    assert moved(tiny_denoising_model, found).dot(right) > 0


def test_every_draw_of_an_image_is_counted(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData, cpu: Accelerator
) -> None:
    method = InfluenceDenoiser(draws=2, samples=10)
    cost = unlearn(method, tiny_denoising_model, request_data, accelerator=cpu, seed=0).cost
    assert cost.forward_samples == cost.backward_samples == 2 * (12 + 10)


def test_it_runs_without_labels(
    tiny_unconditional_model: DenoisingModel, request_data: UnlearnData, cpu: Accelerator
) -> None:
    method = InfluenceDenoiser(draws=1, samples=8)
    assert unlearn(method, tiny_unconditional_model, request_data, accelerator=cpu, seed=0).cost.passes == 20


@pytest.mark.parametrize("settings", [{"damping": 0.0}, {"alpha": -1.0}, {"draws": 0}])
def test_numbers_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        InfluenceDenoiser(**settings)  # type: ignore[arg-type]
