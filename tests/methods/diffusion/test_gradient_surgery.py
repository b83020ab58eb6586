"""Gradient surgery: the projection, and the gradient of a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from gen_unlearn.methods.diffusion.denoising import DenoisingLoss, DenoisingModel
from gen_unlearn.methods.diffusion.gradient_surgery import GradientSurgery, opposition
from gen_unlearn.methods.diffusion.gradients import gradient_of, inner_product
from gen_unlearn.methods.loop import Term, batch_of
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.unlearn_data import UnlearnData


def without_conflict(ascent: list[Tensor], retain: list[Tensor]) -> list[Tensor]:
    factor = opposition(ascent, retain)
    return [one - factor * other for one, other in zip(ascent, retain, strict=True)]


def test_a_conflict_is_projected_away_and_nothing_else() -> None:
    retain = [torch.tensor([1.0, 0.0]), torch.tensor([2.0])]
    against = [torch.tensor([-3.0, 4.0]), torch.tensor([-1.0])]
    along = [torch.tensor([3.0, 4.0]), torch.tensor([1.0])]
    found = without_conflict(against, retain)
    assert torch.equal(found[0], torch.tensor([-2.0, 4.0]))
    assert torch.equal(found[1], torch.tensor([1.0]))
    assert all(torch.equal(one, two) for one, two in zip(without_conflict(along, retain), along, strict=True))


def test_without_a_retain_gradient_the_ascent_stays() -> None:
    ascent = [torch.tensor([-3.0, 4.0])]
    assert torch.equal(without_conflict(ascent, [torch.zeros(2)])[0], ascent[0])


def test_a_step_follows_the_projected_gradient(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData, cpu: Accelerator
) -> None:
    """Take one step of SGD on whole sets, so that it is minus the learning rate times the gradient."""
    method = GradientSurgery(
        steps=1,
        optimizer="sgd",
        momentum=0.0,
        lr=0.1,
        clip=None,
        label_dropout=0.0,
        batch_forget=12,
        batch_retain=48,
        forget_weight=3.0,
        retain_weight=0.5,
    )
    found = unlearn(method, tiny_denoising_model, request_data, accelerator=cpu, seed=0).model
    gradients = []
    for role, part, size, place in (
        ("forget", request_data.forget, 12, 0),
        ("retain", request_data.retain, 48, 1),
    ):
        loss = DenoisingLoss(0, role)
        rows = next(Term(part, loss, size, drawn=1).rows(0, "order", 0, 0, place))
        gradients.append(gradient_of(loss(tiny_denoising_model, batch_of(part, rows)), tiny_denoising_model))
    forget, retain = gradients
    projected = without_conflict([-one for one in forget], retain)
    before = dict(tiny_denoising_model.named_parameters())
    for (name, after), one, two in zip(found.named_parameters(), retain, projected, strict=True):
        expected = before[name] - 0.1 * (0.5 * one + 3.0 * two)
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)


def test_the_projected_ascent_does_not_raise_the_retained_loss_to_first_order(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData
) -> None:
    model = tiny_denoising_model
    retain = gradient_of(DenoisingLoss(0, "r")(model, batch_of(request_data.retain, np.arange(48))), model)
    forget = gradient_of(DenoisingLoss(0, "f")(model, batch_of(request_data.forget, np.arange(12))), model)
    ascent = [-one for one in forget]
    assert inner_product(ascent, retain) < 0
    projected = without_conflict(ascent, retain)
    size = inner_product(retain, retain).sqrt() * inner_product(projected, projected).sqrt()
    assert abs(inner_product(projected, retain)) < 1e-5 * size
    assert inner_product(projected, ascent) > 0


def test_a_step_costs_both_parts(
    tiny_denoising_model: DenoisingModel, request_data: UnlearnData, cpu: Accelerator
) -> None:
    method = GradientSurgery(steps=3, batch_forget=8, batch_retain=16)
    cost = unlearn(method, tiny_denoising_model, request_data, accelerator=cpu, seed=0).cost
    assert cost.forward_samples == cost.backward_samples == 3 * 24


def test_it_runs_without_labels(
    tiny_unconditional_model: DenoisingModel, request_data: UnlearnData, cpu: Accelerator
) -> None:
    method = GradientSurgery(steps=2, batch_forget=8, batch_retain=8, retain_weight=0.0)
    assert unlearn(method, tiny_unconditional_model, request_data, accelerator=cpu, seed=0).cost.passes == 32


@pytest.mark.parametrize("settings", [{"forget_weight": 0.0}, {"retain_weight": -1.0}])
def test_weights_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        GradientSurgery(**settings)
