"""The count of samples, and its cap."""

from __future__ import annotations

import pytest
from accelerate import Accelerator
from torch import nn

from gen_unlearn.methods.budget import Budget, BudgetExceededError, Cost
from gen_unlearn.methods.classification.fine_tune import FineTune
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.unlearn_data import UnlearnData


def test_a_training_step_is_one_pass_per_sample() -> None:
    budget = Budget()
    budget.count(forward=30, backward=30)
    assert budget.cost == Cost(30, 30)
    assert budget.cost.passes == 30
    budget.count(forward=30)
    assert budget.cost.passes == 40
    budget.count(backward=3)
    assert budget.cost.passes == 42


def test_stops_past_the_cap_and_not_at_it() -> None:
    budget = Budget(cap=10)
    budget.count(forward=10, backward=10)
    with pytest.raises(BudgetExceededError, match="at most 10 sample passes, the method asks for 11"):
        budget.count(forward=1, backward=1)


def test_measures_a_method(tiny_mlp: nn.Module, request_data: UnlearnData, cpu: Accelerator) -> None:
    method = FineTune(epochs=3, batch_retain=20)
    cost = unlearn(method, tiny_mlp, request_data, accelerator=cpu, seed=0, cap=3 * 48).cost
    assert (cost.forward_samples, cost.backward_samples) == (3 * 48, 3 * 48)
    assert cost.seconds > 0
    assert cost.peak_memory is None
    with pytest.raises(BudgetExceededError):
        unlearn(method, tiny_mlp, request_data, accelerator=cpu, seed=0, cap=3 * 48 - 1)
