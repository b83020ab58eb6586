"""SISS as a method: what it reads, what a step is, what it costs."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from small_denoising_models import first_batch, gradients_by_hand
from small_requests import apply, flat

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.methods.diffusion.siss import Siss
from gen_unlearn.methods.diffusion.siss_loss import SissLoss
from gen_unlearn.methods.joined_images import join
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.repro import derive_seed
from gen_unlearn.training.batches import rows_of_step

PLAIN = Siss(
    steps=1, lr=1.0, optimizer="sgd", momentum=0.0, clip=None, batch_retain=16, norm_every=1, label_dropout=0
)


def one_batch(data: UnlearnData, size: int = 16, step: int = 0) -> Batch:
    return first_batch(join(data.forget, data.retain), size, 0)._replace(step=step)


def loss_of(method: Siss, data: UnlearnData) -> SissLoss:
    return method.loss(data, seed=0, budget=Budget())


def both_gradients(
    method: Siss, model: DenoisingModel, data: UnlearnData
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of both parts, each by a forward and a backward pass of its own."""
    batch = one_batch(data)
    first = gradients_by_hand(model, lambda m: loss_of(method, data).parts(m, batch)[0])
    return first, gradients_by_hand(model, lambda m: loss_of(method, data).parts(m, batch)[1])


@pytest.mark.parametrize("unit", ["norm", "share"])
@pytest.mark.parametrize("mixture", [0.0, 0.5, 1.0])
def test_a_measured_norm_gives_the_exact_step(
    mixture: float, unit: str, tiny_unconditional_model: DenoisingModel, request_data: UnlearnData
) -> None:
    method = replace(PLAIN, mixture=mixture, ratio_unit=unit, ratio=0.3, largest=1e9)  # type: ignore[arg-type]
    first, second = both_gradients(method, tiny_unconditional_model, request_data)
    assert first.norm() > 0
    size = 0.3 * (first.norm() if unit == "share" else 1.0)
    step = first - size * second / second.norm() if second.norm() else first
    moved = flat(tiny_unconditional_model) - flat(apply(method, tiny_unconditional_model, request_data))
    torch.testing.assert_close(moved, step, rtol=1e-3, atol=1e-5 * float(step.abs().max()))


def test_an_unbiased_step_weighs_by_the_sizes_of_the_parts(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData
) -> None:
    method = replace(PLAIN, mode="unbiased", strength=2.0)
    first, second = both_gradients(method, tiny_denoising_model, request_data)
    plain = loss_of(replace(method, strength=0.0), request_data)
    assert (plain.retain_weight, plain.forget_weight) == (60 / 48, 12 / 48)
    moved = flat(tiny_denoising_model) - flat(apply(method, tiny_denoising_model, request_data))
    step = first - 3 * 12 / 48 * second
    torch.testing.assert_close(moved, step, rtol=1e-3, atol=1e-5 * float(step.abs().max()))


def test_a_lagged_norm_is_kept_until_the_next_measurement(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData
) -> None:
    model = copy.deepcopy(tiny_denoising_model)
    loss = loss_of(replace(PLAIN, norm_every=3), request_data)
    factors = []
    for step in range(5):
        loss(model, one_batch(request_data, step=step))
        factors.append(float(loss._factor))  # type: ignore[arg-type]
    assert factors[0] == factors[1] == factors[2] != factors[3] == factors[4]


@pytest.mark.parametrize(
    ("settings", "backward"),
    [
        ({"mode": "unbiased"}, 7),
        ({"ratio_unit": "norm"}, 7 + 3),
        ({"ratio_unit": "share"}, 7 + 2 * 3),
        ({"ratio_unit": "norm", "norm_every": 1}, 7 + 7),
    ],
)
def test_a_step_costs_what_is_declared(
    settings: dict[str, object],
    backward: int,
    tiny_denoising_model: DenoisingModel,
    request_data: UnlearnData,
) -> None:
    method = replace(PLAIN, **({"steps": 7, "norm_every": 3, "lr": 1e-4, "batch_retain": 4} | settings))  # type: ignore[arg-type]
    budget = Budget()
    method(tiny_denoising_model, request_data, accelerator=Accelerator(cpu=True), seed=0, budget=budget)
    assert (budget.forward_samples, budget.backward_samples) == (7 * 4, backward * 4)


def test_ascends_on_images_to_forget_alone(request_data: UnlearnData) -> None:
    loss = loss_of(PLAIN, request_data)
    ids = [loss.others(one_batch(request_data, 5, step)).ids for step in range(12)]
    assert request_data.forget.holds(np.concatenate(ids)).all()
    shown = [bytes(one) for one in np.concatenate(ids)]
    assert {shown.count(bytes(one)) for one in request_data.forget.ids} == {5}, "60 draws of 12 images"


def test_sources_and_timesteps_are_drawn_as_they_should(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData
) -> None:
    loss = loss_of(replace(PLAIN, mixture=0.8, lambda_schedule="rising"), request_data)
    pairs = [loss.draw(tiny_denoising_model, one_batch(request_data, 200, step)) for step in range(20)]
    timesteps = torch.cat([one.timesteps for one in pairs]).double()
    counts = timesteps.histc(20, 0, 1000)
    assert ((counts - 200) ** 2 / 200).sum() < 50
    mixture = torch.cat([one.mixture for one in pairs]).double()
    torch.testing.assert_close(mixture, 0.8 * timesteps / 999, rtol=1e-5, atol=1e-6)


def test_a_pair_with_other_labels_shares_nothing(
    tiny_denoising_model: DenoisingModel,
    tiny_unconditional_model: DenoisingModel,
    class_data: UnlearnData,
) -> None:
    batch = batch_of(class_data.retain, np.arange(40))
    apart = loss_of(PLAIN, class_data).draw(tiny_denoising_model, batch)
    from_forget = apart.mixed.gap < 0
    assert apart.mixed.gap.isinf().all()
    assert (apart.labels[from_forget] == 0).all()
    assert torch.equal(apart.labels[~from_forget], batch.labels[~from_forget])
    assert 8 < from_forget.sum() < 32
    together = loss_of(PLAIN, class_data).draw(tiny_unconditional_model, batch)
    assert together.mixed.gap.isfinite().all()
    dropped = loss_of(replace(PLAIN, label_dropout=0.5), class_data).draw(tiny_denoising_model, batch)
    nothing = dropped.labels == 3
    assert nothing.any()
    assert torch.equal(nothing, dropped.mixed.gap.isfinite())


def test_a_gradient_of_zero_is_guarded(tiny_denoising_model: DenoisingModel, class_data: UnlearnData) -> None:
    """No retained image has the label of those to forget: with a mixture of 0 all weights of these are 0."""
    model = copy.deepcopy(tiny_denoising_model)
    for unit in ("norm", "share"):
        loss = loss_of(replace(PLAIN, mixture=0.0, ratio_unit=unit), class_data)  # type: ignore[arg-type]
        value = loss(model, batch_of(class_data.retain, np.arange(8)))
        assert value.isfinite()
        assert loss._factor is not None
        assert loss._factor == PLAIN.largest
        value.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_published_numbers_are_converted() -> None:
    celeba, shirt = Siss.presets()["celeba-hq-256"], Siss.presets()["mnist-t-shirt"]
    assert celeba.method.ratio == pytest.approx(2.54e-3, rel=2e-3)
    assert shirt.method.ratio == pytest.approx(6.4e-3, rel=5e-3)
    assert shirt.method.clip == pytest.approx(1 / 784)
    assert shirt.method.eps == pytest.approx(1e-8 / 784)
    assert (shirt.published_reduction, shirt.pixels) == ("sum", 784)


def test_a_converted_preset_takes_the_published_steps(
    tiny_unconditional_model: DenoisingModel, request_data: UnlearnData
) -> None:
    """AdamW on sums over pixels, with the gradient put together and clipped as published."""
    summed = Siss(
        steps=2, lr=1e-3, ratio_unit="norm", ratio=3.0, norm_every=1, batch_retain=6, label_dropout=0.0
    )
    found = apply(summed.from_sums(16), tiny_unconditional_model, request_data)
    model = copy.deepcopy(tiny_unconditional_model).train()
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, 1e-3, weight_decay=0.0)
    data = join(request_data.forget, request_data.retain)

    for step in range(2):
        rows = rows_of_step(len(data), 6, step, derive_seed(0, "order", 0, 0, 0))
        batch = batch_of(data, rows, step=step)
        first, second = loss_of(summed, request_data).parts(model, batch)
        ascent = torch.autograd.grad(16 * second, weights, retain_graph=True)
        descent = torch.autograd.grad(16 * first, weights)
        size = torch.cat([part.flatten() for part in ascent]).norm()
        for weight, down, up in zip(weights, descent, ascent, strict=True):
            weight.grad = down - 3.0 / size * up
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    ours, theirs = (flat(one) - flat(tiny_unconditional_model) for one in (found, model))
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()


def test_the_entropy_of_the_weights_is_logged(
    tiny_unconditional_model: DenoisingModel, request_data: UnlearnData, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        apply(replace(PLAIN, lr=1e-4), tiny_unconditional_model, request_data)
    assert "entropy of the weights 0." in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"mixture": 1.5},
        {"lambda_schedule": (0.2, 1.2)},
        {"lambda_schedule": ()},
        {"lambda_schedule": "falling"},
        {"strength": -1.0},
        {"ratio": 0.0},
        {"norm_every": 0},
        {"betas": (0.9, 1.0)},
        {"eps": 0.0},
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Siss(**settings)  # type: ignore[arg-type]
