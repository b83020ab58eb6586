"""Adversarial examples stay where they may be, raise the loss, and are paid for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_requests import small_mlp
from torch import nn

from gen_unlearn.methods.adversarial import fgsm, nearest_adversarial, pgd, predict
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import frozen_teacher
from gen_unlearn.methods.loop import batches_of


@pytest.fixture(scope="module")
def model(tiny_mlp: nn.Module) -> nn.Module:
    """A trained network that needs no gradient."""
    return frozen_teacher(tiny_mlp)


@pytest.fixture(scope="module")
def batch(request_data):
    """Images to attack."""
    return next(batches_of(request_data.forget, 64))


def losses(model, inputs, labels):
    """Cross-entropy of every image."""
    return F.cross_entropy(model(inputs), labels, reduction="none")


def test_fgsm_moves_every_pixel_by_twice_epsilon_up_the_loss(model, batch):
    budget = Budget()
    found = fgsm(model, batch.inputs, batch.labels, epsilon=0.01, budget=budget)
    assert (losses(model, found, batch.labels) > losses(model, batch.inputs, batch.labels)).all()
    moved = (found - batch.inputs).abs()
    inside = batch.inputs.abs() < 0.97
    torch.testing.assert_close(moved[inside], torch.full_like(moved[inside], 0.02), rtol=0, atol=1e-6)
    assert found.abs().max() <= 1
    assert (budget.forward_samples, budget.backward_samples) == (len(batch.ids), len(batch.ids))


def test_fgsm_follows_the_gradient_of_a_linear_network():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, -1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    inputs = torch.zeros(1, 1, 2, 2)
    found = fgsm(network, inputs, torch.tensor([0]), epsilon=0.05, budget=Budget())
    torch.testing.assert_close(found.flatten(), torch.tensor([-0.1, 0.1, -0.1, 0.0]))
    assert network[1].weight.grad is None


@pytest.mark.parametrize("epsilon", [0.05, 0.8])
def test_pgd_stays_in_its_ball_and_in_range(model, batch, epsilon):
    for norm, order in (("l2", 2.0), ("linf", float("inf"))):
        found = pgd(
            model,
            batch.inputs,
            batch.labels,
            epsilon=epsilon,
            steps=15,
            step_size=epsilon / 4,
            norm=norm,
            budget=Budget(),
        )
        away = (found - batch.inputs).flatten(1).norm(p=order, dim=1)
        assert (away <= 2 * epsilon * (1 + 1e-5)).all()
        assert away.max() > 1.5 * epsilon
        assert found.abs().max() <= 1
        assert (losses(model, found, batch.labels) > losses(model, batch.inputs, batch.labels)).all()


def test_pgd_that_stops_at_the_first_wrong_label_is_nearer_and_cheaper(model, batch):
    budgets = {"first_wrong": Budget(), "last": Budget()}
    found = {
        stop: pgd(
            model,
            batch.inputs,
            batch.labels,
            epsilon=1.0,
            steps=30,
            step_size=0.1,
            norm="l2",
            stop=stop,
            budget=budget,
        )
        for stop, budget in budgets.items()
    }
    away = {stop: (inputs - batch.inputs).flatten(1).norm(dim=1) for stop, inputs in found.items()}
    assert (predict(model, found["first_wrong"], Budget()) != batch.labels).all()
    assert (away["first_wrong"] < away["last"]).all()
    assert budgets["last"].forward_samples == 30 * len(batch.ids)
    assert budgets["first_wrong"].forward_samples < budgets["last"].forward_samples


def test_the_nearest_example_of_a_linear_network_lies_just_behind_its_boundary():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
        network[1].bias.copy_(torch.tensor([1.0, 0.0]))  # the boundary is 0.2 away in [-1, 1], 0.1 in [0, 1]
    inputs, label = torch.zeros(1, 1, 2, 2), torch.tensor([0])
    found = nearest_adversarial(network, inputs, label, epsilon=0.02, doublings=5, steps=50, budget=Budget())
    assert found.found.all()
    assert found.predicted.tolist() == [1]
    away = float((found.inputs - inputs).norm()) / 2
    assert 0.1 <= away <= 0.1 + 0.016 + 1e-6  # found in the ball of radius 0.16, whose steps are 0.016
    missed = nearest_adversarial(network, inputs, label, epsilon=0.02, doublings=2, steps=50, budget=Budget())
    assert not missed.found.any()
    assert missed.predicted.tolist() == [0]


def test_mistakes_are_named(model, batch):
    with pytest.raises(ValueError, match="evaluation mode"):
        fgsm(small_mlp().train(), batch.inputs, batch.labels, epsilon=0.1, budget=Budget())
    with pytest.raises(ValueError, match="epsilon above 0"):
        fgsm(model, batch.inputs, batch.labels, epsilon=0.0, budget=Budget())
    with pytest.raises(ValueError, match="at least 1 step"):
        pgd(model, batch.inputs, batch.labels, epsilon=0.1, steps=0, step_size=0.1, budget=Budget())
    with pytest.raises(ValueError, match="doublings"):
        nearest_adversarial(
            model, batch.inputs, batch.labels, epsilon=0.1, doublings=-1, steps=1, budget=Budget()
        )
