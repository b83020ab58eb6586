"""EraseDiff: the inner steps leave the model alone, lambda is guarded, a step is what it says."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from small_denoising_models import first_batch, gradients_by_hand
from small_requests import apply, flat, same_state

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingLoss, DenoisingModel
from gen_unlearn.methods.diffusion.erase_diff import EraseDiff, InnerSteps, UniformTargetLoss
from gen_unlearn.methods.unlearn_data import UnlearnData

PLAIN = EraseDiff(
    steps=1,
    lr=1.0,
    optimizer="sgd",
    momentum=0.0,
    clip=None,
    label_dropout=0.0,
    batch_forget=5,
    batch_retain=7,
    inner_lr=0.05,
)


def by_hand(model: DenoisingModel, data: UnlearnData) -> tuple[torch.Tensor, torch.Tensor]:
    retain, forget = first_batch(data.retain, 7, 0, place=0), first_batch(data.forget, 5, 0, place=1)
    return (
        gradients_by_hand(model, lambda m: DenoisingLoss(0, "retain")(m, retain)),
        gradients_by_hand(model, lambda m: UniformTargetLoss(0, "forget")(m, forget)),
    )


def inner_of(method: EraseDiff, model: DenoisingModel, data: UnlearnData) -> InnerSteps:
    return InnerSteps(method, model, data, seed=0, budget=Budget())


@pytest.mark.parametrize("barrier", ["gradient", "value", "fixed"])
@pytest.mark.parametrize("eta", [0.0, 20.0])
def test_a_step_is_taken_from_the_weights_before_the_inner_steps(
    barrier: str, eta: float, tiny_denoising_model: DenoisingModel, request_data: UnlearnData
) -> None:
    method = replace(PLAIN, barrier=barrier, eta=eta, weight=0.7)  # type: ignore[arg-type]
    retain, forget = by_hand(tiny_denoising_model, request_data)
    batch = first_batch(request_data.forget, 5, 0, place=1)
    start = copy.deepcopy(tiny_denoising_model).train()
    reached, loss = inner_of(method, start, request_data)(start, batch), UniformTargetLoss(0, "forget")
    with torch.no_grad():
        gap = float(loss(start, batch) - loss(reached, batch))
    assert gap > 0, "the inner steps must do something"
    square, aligned = float(forget @ forget), float(retain @ forget)
    weights = {
        "gradient": max(eta - aligned / square, 0.0),
        "value": max((eta * gap - aligned) / square, 0.0),
        "fixed": 0.7,
    }
    step = retain + weights[barrier] * forget
    moved = flat(tiny_denoising_model) - flat(apply(method, tiny_denoising_model, request_data))
    torch.testing.assert_close(moved, step, rtol=1e-3, atol=1e-4 * float(step.abs().max()))


def test_inner_steps_start_anew_and_leave_the_model(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData
) -> None:
    """Neither weights nor moments of Adam are left over from the steps before."""
    model = copy.deepcopy(tiny_denoising_model).train()
    method = replace(PLAIN, optimizer="adam", inner_lr=0.01)
    inner, batch = inner_of(method, model, request_data), first_batch(request_data.forget, 5, 0)
    first = copy.deepcopy(inner(model, batch))
    assert same_state(model, tiny_denoising_model)
    assert not same_state(first, model)
    other = inner(model, batch._replace(step=1))
    assert not same_state(other, first)
    assert same_state(inner(model, batch), first)


def test_lambda_is_guarded() -> None:
    zero, one = [torch.zeros(3)], [torch.ones(3)]
    gap = torch.tensor(0.5)
    assert PLAIN.multiplier(one, one, gap) == 0
    assert PLAIN.multiplier(zero, one, gap) == pytest.approx(0.1)
    assert PLAIN.multiplier([-torch.ones(3)], one, gap) == pytest.approx(1.1)
    assert PLAIN.multiplier(zero, zero, gap) == pytest.approx(0.1)
    value = replace(PLAIN, barrier="value")
    assert value.multiplier(zero, one, gap) == pytest.approx(0.05 / 3)
    assert value.multiplier(zero, zero, gap) == PLAIN.largest
    assert value.multiplier(one, zero, torch.tensor(-1.0)) == 0


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_step_costs_what_is_declared(
    count: int, tiny_denoising_model: DenoisingModel, request_data: UnlearnData
) -> None:
    budget = Budget()
    method = replace(PLAIN, steps=2, lr=1e-4, inner_steps=count)
    method(tiny_denoising_model, request_data, accelerator=Accelerator(cpu=True), seed=0, budget=budget)
    forward, backward = 7 + (count + 1 + (count > 0)) * 5, 7 + (count + 1) * 5
    assert (budget.forward_samples, budget.backward_samples) == (2 * forward, 2 * backward)


def test_averaged_weights_are_returned(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData
) -> None:
    method = replace(PLAIN, lr=0.1)
    last = flat(apply(method, tiny_denoising_model, request_data)) - flat(tiny_denoising_model)
    averaged = flat(apply(replace(method, ema_decay=0.75), tiny_denoising_model, request_data))
    torch.testing.assert_close(averaged - flat(tiny_denoising_model), last / 4, rtol=1e-3, atol=1e-6)


def test_the_target_is_uniform_and_the_parts_have_their_own_timesteps(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData
) -> None:
    batch = first_batch(request_data.forget, 2000, 0)
    retain = DenoisingLoss(0, "retain").draw(tiny_denoising_model, batch).timesteps
    forget = UniformTargetLoss(0, "forget").draw(tiny_denoising_model, batch).timesteps
    assert not torch.equal(retain, forget)

    class Half(DenoisingModel):
        def forward(self, noisy: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return torch.full_like(noisy, 0.5)

    model = Half(tiny_denoising_model.network, tiny_denoising_model.noise, 3)
    variance = UniformTargetLoss(0, "forget")(model, batch)
    assert float(variance) == pytest.approx(1 / 12, rel=0.02), "that of a uniform number"


def test_published_numbers_are_kept() -> None:
    preset = EraseDiff.presets()["cifar10-class"]
    assert preset.published_reduction == "mean"
    found = preset.method
    assert (found.steps, found.inner_steps, found.eta, found.ema_decay) == (288, 2, 0.1, 0.99)
    assert (found.lr, found.batch_forget, found.clip, found.barrier) == (1e-4, 128, 1.0, "gradient")


@pytest.mark.parametrize(
    "settings",
    [
        {"inner_steps": -1},
        {"inner_steps": 0, "barrier": "value"},
        {"inner_lr": 0.0},
        {"eta": -0.1},
        {"weight": -0.1},
        {"largest": 0.0},
        {"ema_decay": 1.0},
        {"barrier": "norm"},
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        EraseDiff(**settings)  # type: ignore[arg-type]
