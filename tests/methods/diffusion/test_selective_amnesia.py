"""Selective Amnesia: Fisher information of single own samples, replay, the elastic penalty."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingModel, squared_error
from gen_unlearn.methods.diffusion.per_image import denoising_fisher, draws_of, image_gradients
from gen_unlearn.methods.diffusion.sampling import sample_images
from gen_unlearn.methods.diffusion.selective_amnesia import SelectiveAmnesia, SurrogateLoss, anchor_of
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.repro import digest_state

METHOD = SelectiveAmnesia(
    steps=3,
    batch_forget=8,
    batch_retain=8,
    replay_per_class=4,
    fisher_samples=6,
    fisher_draws=2,
    sampler_steps=3,
)


def looped_gradients(model: DenoisingModel, batch: Batch, draws: int) -> list[dict[str, torch.Tensor]]:
    """Return the gradient of each image by itself, with ordinary backward passes."""
    found = []
    parameters = dict(model.named_parameters())
    for row in range(len(batch.ids)):
        own = batch._replace(
            inputs=batch.inputs[row : row + 1],
            labels=batch.labels[row : row + 1],
            ids=batch.ids[row : row + 1],
        )
        losses = []
        for number in range(draws):
            drawn = draws_of(model, own, seed=0, role="test", number=number, of=draws)
            noisy = model.noised(own.inputs, drawn.noise, drawn.timesteps)
            losses.append(squared_error(model(noisy, drawn.timesteps, drawn.labels), drawn.noise).mean())
        gradients = torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))
        found.append(dict(zip(parameters, gradients, strict=True)))
    return found


def test_gradients_of_single_images_are_those_of_a_loop_also_through_attention(
    class_data: UnlearnData,
) -> None:
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        num_class_embeds=4,
    )
    model = DenoisingModel(network, DDPMScheduler(), 3).eval()
    batch = batch_of(class_data.retain, np.arange(3))
    found = image_gradients(model, batch, seed=0, role="test", draws=2, budget=Budget())
    for row, expected in enumerate(looped_gradients(model, batch, 2)):
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name][row], gradient, rtol=1e-4, atol=1e-6)


def test_the_information_is_the_mean_of_squares_and_not_the_square_of_the_mean(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData
) -> None:
    data, budget = class_data.retain.select(np.arange(10)), Budget()
    fisher = denoising_fisher(tiny_denoising_model, data, seed=0, role="test", draws=2, budget=budget)
    gradients = looped_gradients(tiny_denoising_model, batch_of(data, np.arange(10)), 2)
    shrunk = 0
    for name, found in fisher.items():
        rows = torch.stack([one[name] for one in gradients]).double()
        torch.testing.assert_close(found, rows.square().mean(0), rtol=1e-3, atol=1e-10)
        shrunk += int((found > 2 * rows.mean(0).square()).sum())
    assert shrunk > 0
    assert (budget.forward_samples, budget.backward_samples) == (20, 20)


def test_draws_are_a_function_of_the_image_and_cover_the_schedule(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData
) -> None:
    both = batch_of(class_data.retain, np.arange(40))
    one = batch_of(class_data.retain, np.arange(5, 6))
    parts = [
        draws_of(tiny_denoising_model, both, seed=0, role="r", number=number, of=4) for number in range(4)
    ]
    alone = draws_of(tiny_denoising_model, one, seed=0, role="r", number=2, of=4)
    assert torch.equal(parts[2].noise[5:6], alone.noise)
    assert torch.equal(parts[2].timesteps[5:6], alone.timesteps)
    for number, part in enumerate(parts):
        assert part.timesteps.min() >= 250 * number
        assert part.timesteps.max() < 250 * (number + 1)
        assert part.timesteps.max() - part.timesteps.min() > 150


def test_samples_are_images_of_the_model_and_do_not_depend_on_the_batch(
    tiny_denoising_model: DenoisingModel,
) -> None:
    def sampled(batch_size: int, seed: int = 0) -> np.ndarray:
        found = sample_images(
            tiny_denoising_model,
            np.arange(6) % 3,
            ("a", "b", "c"),
            (4, 4, 1),
            role="test",
            seed=seed,
            budget=budget,
            steps=4,
            batch_size=batch_size,
        )
        return found.all_images()

    budget = Budget()
    first = sampled(6)
    assert budget.forward_samples == 24
    assert first.shape == (6, 4, 4, 1)
    assert np.abs(first.astype(int) - sampled(4).astype(int)).max() <= 1
    assert not np.array_equal(first, sampled(6, seed=1))


def test_the_surrogate_is_uniform_noise_in_the_range_of_images(class_data: UnlearnData) -> None:
    batch = batch_of(class_data.forget, np.arange(20))
    loss = SurrogateLoss(0, {}, {}, 0.0)
    first, other = loss.surrogate(batch), loss.surrogate(batch._replace(step=1))
    assert -1 <= first.inputs.min() < -0.95
    assert 0.95 < first.inputs.max() <= 1
    assert abs(first.inputs.mean()) < 0.1
    assert first.inputs.std() == pytest.approx(3**-0.5, rel=0.1)
    assert torch.equal(first.labels, batch.labels)
    assert not torch.equal(first.inputs, other.inputs)


def test_the_images_to_forget_are_not_read(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    other = replace(class_data.forget, images=255 - class_data.forget.all_images())
    results = [
        unlearn(
            METHOD,
            tiny_denoising_model,
            UnlearnData(part, class_data.retain, class_data.heldout),
            accelerator=cpu,
            seed=0,
        ).model
        for part in (class_data.forget, other)
    ]
    assert digest_state(results[0].state_dict()) == digest_state(results[1].state_dict())


def test_the_penalty_is_the_weighted_squared_distance_to_the_original(
    tiny_denoising_model: DenoisingModel,
) -> None:
    anchor = anchor_of(tiny_denoising_model)
    moved = {name: weight - 0.5 for name, weight in anchor.items()}
    fisher = {name: torch.full_like(weight, 3.0, dtype=torch.float64) for name, weight in anchor.items()}
    count = sum(weight.numel() for weight in anchor.values())
    assert SurrogateLoss(0, anchor, fisher, 1.0).drift(tiny_denoising_model) == 0
    drift = SurrogateLoss(0, moved, fisher, 1.0).drift(tiny_denoising_model).detach()
    assert float(drift) == pytest.approx(0.75 * count, rel=1e-4)


def test_a_stronger_penalty_keeps_the_weights_nearer(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    def distance(penalty: float) -> float:
        method = replace(METHOD, steps=15, lr=1e-3, penalty=penalty)
        found = unlearn(method, tiny_denoising_model, class_data, accelerator=cpu, seed=0).model
        fisher = METHOD.fisher(
            tiny_denoising_model, class_data.forget.class_names, (4, 4, 1), seed=0, budget=Budget()
        )
        return float(SurrogateLoss(0, anchor_of(tiny_denoising_model), fisher, 1.0).drift(found).detach())

    assert distance(1e8) < 0.5 * distance(0.0)


def test_sampling_and_information_are_counted_beside_the_steps(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    cost = unlearn(METHOD, tiny_denoising_model, class_data, accelerator=cpu, seed=0).cost
    sampled, fisher, steps = 3 * (2 * 4 + 6), 6 * 2, 3 * 16
    assert (cost.forward_samples, cost.backward_samples) == (sampled + fisher + steps, fisher + steps)


def test_it_needs_labels_and_a_class_that_stays(
    tiny_denoising_model: DenoisingModel,
    tiny_unconditional_model: DenoisingModel,
    class_data: UnlearnData,
    request_data: UnlearnData,
    cpu: Accelerator,
) -> None:
    with pytest.raises(ValueError, match="embedding of classes"):
        unlearn(METHOD, tiny_unconditional_model, class_data, accelerator=cpu, seed=0)
    with pytest.raises(ValueError, match="a class that stays"):
        unlearn(METHOD, tiny_denoising_model, request_data, accelerator=cpu, seed=0)


def test_the_preset_has_the_gradient_of_the_published_sum() -> None:
    """Check that d(P loss + 10 sum F_sum d^2) is P times d(loss + penalty sum F_mean d^2)."""
    preset = SelectiveAmnesia.presets()["cifar10"]
    pixels, timesteps = preset.pixels, 1000
    weight = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    mean, fisher = (weight * torch.tensor([1.0, 2.0])).square().mean(), torch.tensor([1e-6, 3e-6])
    published = pixels * mean + 10 * (fisher * (pixels * timesteps) ** 2 * weight.square()).sum()
    ours = mean + preset.method.penalty * (fisher * weight.square()).sum()
    first, second = (torch.autograd.grad(one, weight, retain_graph=True)[0] for one in (published, ours))
    torch.testing.assert_close(first, pixels * second)
    assert preset.method.clip == pytest.approx(1 / pixels)
    assert preset.published_reduction == "sum"


def test_the_preset_runs_with_fewer_samples_and_steps(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    for preset in SelectiveAmnesia.presets().values():
        short = replace(preset.method, steps=2, replay_per_class=2, fisher_samples=2, fisher_draws=2)
        short = replace(short, sampler_steps=2, batch_forget=8, batch_retain=8)
        assert unlearn(short, tiny_denoising_model, class_data, accelerator=cpu, seed=0).cost.passes > 0
