"""Stacks of adapters: what is read in which step, and AdamW for all of them at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_ensembles import random_jobs

from gen_unlearn.adapters.family import AdapterState, FitJob, HeadShape
from gen_unlearn.adapters.stacks import EMPTY, StackPlan, adamw_step, fit_in_stacks

SHAPE = HeadShape(3, 2)


def test_every_member_is_read_once_in_each_epoch_and_the_rest_is_padding() -> None:
    jobs = random_jobs([7, 3, 8], SHAPE)
    plan = StackPlan.of(jobs, 3, 4, 5, 0)
    assert plan.rows.shape == (6, 5, 4)
    assert plan.lengths == [6, 3, 6]
    for place, job in enumerate(jobs):
        steps = slice(0, plan.lengths[place])
        rows, epochs = plan.rows[steps, place], plan.epochs[steps, place]
        for epoch in range(3):
            read = rows[epochs == epoch]
            assert sorted(read[read != EMPTY]) == list(range(len(job.members)))
            assert (read == EMPTY).sum() == -len(job.members) % 4
            assert (np.diff((read.ravel() == EMPTY).astype(int)) >= 0).all(), "padding is behind the members"
    assert (plan.rows[3:, 1] == EMPTY).all(), "an adapter that is finished reads nothing"
    assert (plan.rows[:, 3:] == EMPTY).all(), "places without an adapter are empty"


def test_the_plan_of_an_adapter_does_not_depend_on_the_others() -> None:
    jobs = random_jobs([7, 3, 8], SHAPE)
    together = StackPlan.of(jobs, 2, 4, 4, 0)
    for place, job in enumerate(jobs):
        alone = StackPlan.of([job], 2, 4, 4, 0)
        steps = slice(0, alone.lengths[0])
        assert np.array_equal(alone.rows[:, 0], together.rows[steps, place])
        assert np.array_equal(alone.epochs[:, 0], together.epochs[steps, place])


def test_epochs_adapters_and_seeds_have_orders_of_their_own() -> None:
    job = random_jobs([12], SHAPE)[0]
    others = [(job, 0), (job, 1), (FitJob(job.adapter + 1, job.members), 0)]
    orders = [epoch.tobytes() for each, seed in others for epoch in StackPlan.of([each], 4, 12, 1, seed).rows]
    assert len(set(orders)) == 12


def test_the_order_of_the_rows_is_immaterial() -> None:
    job = random_jobs([12], SHAPE)[0]
    turned = FitJob(job.adapter, job.members.select(slice(None, None, -1)))
    rows, others = (StackPlan.of([each], 2, 5, 1, 0).rows for each in (job, turned))
    real = rows != EMPTY
    assert np.array_equal(real, others != EMPTY)
    assert np.array_equal(rows[real], 11 - others[real])


def test_shares_are_those_of_a_mean_over_the_real_rows() -> None:
    jobs = random_jobs([7, 2], SHAPE)
    plan = StackPlan.of(jobs, 1, 4, 3, 0)
    assert plan.shares(0).dtype == torch.float32
    assert plan.shares(0).tolist() == [[0.25] * 4, [0.5, 0.5, 0, 0], [0] * 4]
    third = torch.tensor(1 / 3)
    assert torch.equal(plan.shares(1)[0], torch.stack([third, third, third, torch.tensor(0.0)]))
    assert not plan.shares(1)[1:].any()


def test_adapters_end_in_their_last_step() -> None:
    plan = StackPlan.of(random_jobs([7, 2, 8], SHAPE), 2, 4, 4, 0)
    assert [plan.ended(step) for step in range(4)] == [[], [1], [], [0, 2]]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_that_of_torch_with_a_rate_for_each_adapter(decay: float) -> None:
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 4, 5, generator=draw, dtype=torch.float64)
    expected = [weights[place].clone().requires_grad_() for place in range(3)]
    rates = torch.tensor([0.1, 0.0, 0.003], dtype=torch.float64)
    optimizers = [
        torch.optim.AdamW([part], lr=float(rate), weight_decay=decay)
        for part, rate in zip(expected, rates, strict=True)
    ]
    memory = torch.zeros_like(weights), torch.zeros_like(weights)
    for step in range(5):
        gradient = torch.randn(weights.shape, generator=draw, dtype=torch.float64)
        adamw_step(weights, gradient, memory, step + 1, rates.view(3, 1, 1), decay)
        for part, own, optimizer in zip(expected, gradient, optimizers, strict=True):
            part.grad = own
            optimizer.step()
    for place, part in enumerate(expected):
        assert torch.allclose(weights[place], part.detach(), atol=1e-12)
    assert torch.equal(weights[1], expected[1].detach()), "a rate of 0 moves nothing"


@pytest.mark.parametrize("stack", [1, 2, 4, 9])
def test_stacks_are_of_similar_size_and_come_back_in_order(stack: int) -> None:
    jobs = random_jobs([5, 30, 1, 12, 6, 29], SHAPE)
    trained: list[list[int]] = []

    def train(some: list[FitJob]) -> list[AdapterState]:
        trained.append([len(job.members) for job in some])
        return [{"number": np.array(job.adapter)} for job in some]

    found = fit_in_stacks(jobs, stack, train)
    assert [int(state["number"]) for state in found] == [job.adapter for job in jobs]
    assert [len(sizes) for sizes in trained[:-1]] == [stack] * (len(trained) - 1)
    assert [size for sizes in trained for size in sizes] == [30, 29, 12, 6, 5, 1]


def test_nothing_to_fit_is_nothing() -> None:
    assert fit_in_stacks([], 4, lambda some: [{} for _ in some]) == []
