"""Label erasure: its target, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DModel

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.methods.diffusion.label_erasure import ErasedLabelLoss, LabelErasure
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.unlearn_data import UnlearnData

METHOD = LabelErasure(steps=3, batch_forget=8)


def test_the_target_points_away_from_the_class(tiny_denoising_model: DenoisingModel) -> None:
    noisy, timesteps = torch.randn(4, 1, 4, 4), torch.tensor([0, 10, 500, 999])
    labels, null = torch.tensor([0, 1, 2, 0]), torch.full((4,), 3)
    with torch.no_grad():
        of_class = tiny_denoising_model(noisy, timesteps, labels)
        of_none = tiny_denoising_model(noisy, timesteps, null)
    assert not torch.equal(of_class, of_none)
    budget = Budget()
    found = ErasedLabelLoss(0, 2.0, tiny_denoising_model, budget).target(noisy, timesteps, labels)
    torch.testing.assert_close(found, of_none - 2 * (of_class - of_none))
    like_none = ErasedLabelLoss(0, 0.0, tiny_denoising_model, budget).target(noisy, timesteps, labels)
    assert torch.equal(like_none, of_none)
    assert budget.forward_samples == 16


def test_the_label_comes_nearer_to_the_target(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    method = LabelErasure(steps=40, lr=3e-3, batch_forget=20)
    found = unlearn(method, tiny_denoising_model, class_data, accelerator=cpu, seed=0).model
    batch = batch_of(class_data.forget, np.arange(20))
    loss = ErasedLabelLoss(7, 1.0, tiny_denoising_model, Budget())
    with torch.no_grad():
        assert loss(found, batch) < 0.5 * loss(tiny_denoising_model, batch)


def test_the_embedding_alone_moves_in_the_rows_of_forgotten_labels(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    method = replace(METHOD, weights="label_embedding")
    found = unlearn(method, tiny_denoising_model, class_data, accelerator=cpu, seed=0).model
    for name, before in tiny_denoising_model.named_parameters():
        after = found.get_parameter(name)
        if name == "network.class_embedding.weight":
            assert (after[0] != before[0]).any()
            assert torch.equal(after[1:], before[1:])
        else:
            assert torch.equal(after, before)


def test_a_step_costs_a_batch_and_two_forward_passes_of_the_original(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    cost = unlearn(METHOD, tiny_denoising_model, class_data, accelerator=cpu, seed=0).cost
    assert (cost.forward_samples, cost.backward_samples) == (3 * 24, 3 * 8)


def test_it_needs_labels_a_null_label_and_whole_classes(
    tiny_denoising_model: DenoisingModel,
    tiny_unconditional_model: DenoisingModel,
    class_data: UnlearnData,
    request_data: UnlearnData,
    cpu: Accelerator,
) -> None:
    with pytest.raises(ValueError, match="embedding of classes"):
        unlearn(METHOD, tiny_unconditional_model, class_data, accelerator=cpu, seed=0)
    with pytest.raises(ValueError, match="whole classes"):
        unlearn(METHOD, tiny_denoising_model, request_data, accelerator=cpu, seed=0)
    config = {**tiny_denoising_model.network.config, "num_class_embeds": 3}
    without_null = DenoisingModel(UNet2DModel.from_config(config), tiny_denoising_model.noise, 3)
    with pytest.raises(ValueError, match="null label"):
        unlearn(METHOD, without_null, class_data, accelerator=cpu, seed=0)


def test_the_preset_runs_and_keeps_the_clip_of_a_mean(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    preset = LabelErasure.presets()["latents-64"]
    assert (preset.published_reduction, preset.method.eta) == ("mean", 1.0)
    short = replace(preset.method, steps=2)
    assert unlearn(short, tiny_denoising_model, class_data, accelerator=cpu, seed=0).cost.passes > 0
