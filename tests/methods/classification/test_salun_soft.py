"""SalUn-soft: between random labels and the original, and exact in what it leaves where it was."""

from __future__ import annotations

import pytest
import torch
from small_requests import apply, flat, same_state
from torch import nn

from gen_unlearn.methods.classification.random_labels import RandomLabels
from gen_unlearn.methods.classification.salun_soft import PullBack, SalUnSoft


@pytest.mark.parametrize("schedule", ["forget_then_retain", "mixed", "zipped"])
def test_without_the_penalty_it_is_random_labels_to_the_bit(tiny_mlp, request_data, schedule):
    soft = apply(SalUnSoft(beta=0.0, schedule=schedule, epochs=2), tiny_mlp, request_data)
    hard = apply(RandomLabels(schedule=schedule, epochs=2), tiny_mlp, request_data)
    assert same_state(soft, hard)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_huge_penalty_leaves_the_original_to_the_bit(tiny_mlp, request_data, optimizer):
    method = SalUnSoft(beta=1e6, optimizer=optimizer, weight_decay=0.1, epochs=2)
    assert same_state(apply(method, tiny_mlp, request_data), tiny_mlp)


def test_more_penalty_leaves_more_weights_where_they_were(tiny_mlp, request_data):
    start = flat(tiny_mlp)
    moved = [
        int((flat(apply(SalUnSoft(beta=beta), tiny_mlp, request_data)) != start).sum())
        for beta in (0.0, 0.2, 1.0)
    ]
    assert moved[0] > moved[1] > moved[2] > 0


def test_one_step_is_the_proximal_step(tiny_mlp, request_data):
    settings = {"epochs": 1, "momentum": 0.0, "schedule": "zipped", "lr": 0.1}
    plain = flat(apply(RandomLabels(**settings), tiny_mlp, request_data)) - flat(tiny_mlp)
    soft = flat(apply(SalUnSoft(beta=0.1, **settings), tiny_mlp, request_data)) - flat(tiny_mlp)
    expected = plain.sign() * (plain.abs() - 0.01).clamp_min(0)
    torch.testing.assert_close(soft, expected, rtol=1e-3, atol=1e-6)
    assert 0 < (expected != 0).sum() < len(expected)


def test_the_pull_follows_the_learning_rate(tiny_mlp, request_data):
    """A milestone before the first epoch is a tenth of the rate, for the gradient and for the pull."""
    common = {"epochs": 1, "momentum": 0.0, "schedule": "zipped", "batch_retain": 48, "batch_forget": 12}
    rates = {"lr": 0.1, "beta": 0.1}
    late = apply(SalUnSoft(**common | rates, milestones=(0,)), tiny_mlp, request_data)
    slow = apply(SalUnSoft(**common | rates | {"lr": 0.01}), tiny_mlp, request_data)
    torch.testing.assert_close(flat(late), flat(slow), rtol=0, atol=1e-7)


def test_the_goal_stays_the_original():
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    pull = PullBack(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, -1.2]]))
    reached = []
    for _ in range(3):
        pull(0.5)
        reached.append(layer.weight.detach().clone().flatten().tolist())
    assert reached == [[2.5, -1.0], [2.0, -1.0], [1.5, -1.0]]


def test_a_penalty_below_zero_is_refused():
    with pytest.raises(ValueError, match="beta"):
        SalUnSoft(beta=-1.0)
