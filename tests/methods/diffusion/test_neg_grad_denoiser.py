"""NegGrad and NegGrad+ for denoisers: one step against gradients taken by hand, costs, presets."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from small_denoising_models import first_batch, gradients_by_hand
from small_requests import apply, flat

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingLoss, DenoisingModel
from gen_unlearn.methods.diffusion.gradients import gradient_of, norm, ratio_factor, with_gradient
from gen_unlearn.methods.diffusion.neg_grad import NegGradDenoiser
from gen_unlearn.methods.diffusion.neg_grad_plus import NegGradPlusDenoiser
from gen_unlearn.methods.unlearn_data import UnlearnData

STEP = {"steps": 1, "lr": 1.0, "optimizer": "sgd", "momentum": 0.0, "clip": None, "label_dropout": 0.0}
SIZES = {"batch_forget": 5, "batch_retain": 7}


def by_hand(model: DenoisingModel, data: UnlearnData) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of the first step on retained images, and on those to forget."""
    retain, forget = first_batch(data.retain, 7, 0, place=0), first_batch(data.forget, 5, 0, place=1)
    return (
        gradients_by_hand(model, lambda m: DenoisingLoss(0, "retain")(m, retain)),
        gradients_by_hand(model, lambda m: DenoisingLoss(0, "forget")(m, forget)),
    )


def test_ascends_on_the_images_to_forget(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData
) -> None:
    method = NegGradDenoiser(strength=2.0, batch_forget=5, **STEP)  # type: ignore[arg-type]
    batch = first_batch(request_data.forget, 5, 0)
    gradient = gradients_by_hand(tiny_denoising_model, lambda m: DenoisingLoss(0, "forget")(m, batch))
    moved = flat(apply(method, tiny_denoising_model, request_data)) - flat(tiny_denoising_model)
    assert gradient.norm() > 0
    torch.testing.assert_close(moved, 2 * gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


def test_ascent_makes_the_loss_grow(tiny_denoising_model: DenoisingModel, request_data: UnlearnData) -> None:
    loss, batch = DenoisingLoss(5, "test"), first_batch(request_data.forget, 200, 1)
    method = NegGradDenoiser(steps=8, lr=3e-3, batch_forget=12)
    found = apply(method, tiny_denoising_model, request_data)
    with torch.no_grad():
        before, after = loss(tiny_denoising_model, batch), loss(found, batch)
    assert after > 1.05 * before


@pytest.mark.parametrize(
    ("scaling", "largest"), [("fixed", 1e9), ("norm", 1e9), ("share", 1e9), ("share", 1e-3)]
)
def test_a_step_descends_and_ascends(
    scaling: str, largest: float, tiny_denoising_model: DenoisingModel, request_data: UnlearnData
) -> None:
    method = NegGradPlusDenoiser(
        scaling=scaling,
        beta=0.3,
        ratio=0.2,
        largest=largest,
        **STEP,
        **SIZES,  # type: ignore[arg-type]
    )
    retain, forget = by_hand(tiny_denoising_model, request_data)
    factors = {"fixed": 0.3, "norm": 0.2 / forget.norm(), "share": 0.2 * retain.norm() / forget.norm()}
    step = retain - min(float(factors[scaling]), largest) * forget
    moved = flat(tiny_denoising_model) - flat(apply(method, tiny_denoising_model, request_data))
    torch.testing.assert_close(moved, step, rtol=1e-3, atol=1e-5 * float(step.abs().max()))


@pytest.mark.parametrize("scaling", ["fixed", "norm", "share"])
def test_every_scaling_costs_the_same(
    scaling: str, tiny_denoising_model: DenoisingModel, request_data: UnlearnData
) -> None:
    method = NegGradPlusDenoiser(scaling=scaling, steps=3, **SIZES)  # type: ignore[arg-type]
    budget = Budget()
    method(tiny_denoising_model, request_data, accelerator=Accelerator(cpu=True), seed=0, budget=budget)
    assert (budget.forward_samples, budget.backward_samples) == (3 * 12, 3 * 12)


def test_published_numbers_are_converted() -> None:
    ascent = NegGradDenoiser.presets()
    assert [one.method.strength for one in ascent.values()] == [3.0, 0.0303]
    assert [one.pixels for one in ascent.values()] == [196608, 784]
    both = NegGradPlusDenoiser.presets()["celeba-hq-256"].method
    assert both.ratio == pytest.approx(500 / 196608)
    assert both.clip == pytest.approx(1 / 196608)
    assert (both.lr, both.betas, both.weight_decay, both.steps) == (5e-6, (0.95, 0.999), 1e-6, 60)


def test_a_known_gradient_is_not_taken_again(tiny_denoising_model: DenoisingModel) -> None:
    model = copy.deepcopy(tiny_denoising_model)
    value = model(torch.ones(1, 1, 4, 4), torch.tensor([5]), torch.tensor([0])).square().mean()
    gradient = gradient_of(value, model)
    assert all(parameter.grad is None for parameter in model.parameters())
    surrogate = with_gradient(value, model, [part.clone() for part in gradient])
    (-2 * surrogate).backward()
    assert surrogate == value
    for parameter, part in zip(model.parameters(), gradient, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, -2 * part)
    assert norm(gradient) == pytest.approx(
        float(torch.cat([part.double().flatten() for part in gradient]).norm())
    )


def test_a_gradient_of_zero_has_a_finite_factor() -> None:
    zero, tiny = torch.tensor(0.0).double(), torch.tensor(1e-300).double()
    assert ratio_factor(0.5, zero, 100.0) == 100
    assert ratio_factor(zero, zero, 100.0) == 0
    assert ratio_factor(0.5, tiny, 100.0) == 100
    assert ratio_factor(0.5, torch.tensor(2.0), 100.0) == 0.25


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (NegGradDenoiser, {"strength": 0.0}),
        (NegGradPlusDenoiser, {"beta": -1.0}),
        (NegGradPlusDenoiser, {"ratio": 0.0}),
        (NegGradPlusDenoiser, {"largest": 0.0}),
        (NegGradPlusDenoiser, {"scaling": "ratio"}),
    ],
)
def test_numbers_out_of_range_are_refused(
    kind: type[NegGradDenoiser | NegGradPlusDenoiser], settings: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        kind(**settings)  # type: ignore[arg-type]
