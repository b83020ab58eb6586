"""Heads trained in stacks: their bits depend on their own members alone, and they learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_ensembles import digits, digits_recipe, random_jobs
from torch.nn import functional

from gen_unlearn.adapters import sgd_training, stacks
from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.family import FitJob, HeadShape, digest_adapter
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.sgd import SgdHeads

SHAPE = HeadShape(37, 7)
"""Sides that no vector of the processor divides."""

HEADS = {
    "linear": SgdHeads(epochs=4, batch_size=5),
    "perceptron": SgdHeads(hidden=11, epochs=3, batch_size=8),
    "adamw": SgdHeads(hidden=16, epochs=3, batch_size=20, optimizer="adamw", learning_rate=0.01, stack=3),
}


@pytest.fixture(params=HEADS)
def heads(request: pytest.FixtureRequest) -> SgdHeads:
    return HEADS[request.param]


def digests(heads: SgdHeads, jobs: list[FitJob], shape: HeadShape = SHAPE) -> dict[int, str]:
    states = heads.fit(jobs, shape, 3)
    return {job.adapter: digest_adapter(state) for job, state in zip(jobs, states, strict=True)}


def test_an_adapter_is_the_same_alone_and_among_others_in_every_place(heads: SgdHeads) -> None:
    jobs = random_jobs([9, 40, 1, 23, 9, 31], SHAPE)
    together = digests(heads, jobs)
    assert len(set(together.values())) == len(jobs)
    assert digests(heads, jobs[::-1]) == together
    for job in jobs:
        size = len(job.members)
        assert digests(heads, [job]) == {job.adapter: together[job.adapter]}
        for place in range(3):
            others = [
                FitJob(100 + n, other.members) for n, other in enumerate(random_jobs([size] * 3, SHAPE))
            ]
            others[place] = job
            assert digests(heads, others)[job.adapter] == together[job.adapter]


def test_so_it_is_in_every_place_of_a_stack_with_members_of_one_number() -> None:
    jobs = random_jobs([24] * 5, HeadShape(65, 10))
    heads = SgdHeads(hidden=9, epochs=3, stack=5)
    expected = digests(heads, jobs, HeadShape(65, 10))
    for shift in range(1, 5):
        assert digests(heads, jobs[shift:] + jobs[:shift], HeadShape(65, 10)) == expected


def test_threads_and_draws_of_others_are_immaterial(heads: SgdHeads) -> None:
    jobs = random_jobs([30, 12], SHAPE)
    expected = digests(heads, jobs)
    torch.manual_seed(5)
    torch.rand(7)
    state = torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        assert digests(heads, jobs) == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_record_changes_only_the_adapter_that_had_it(heads: SgdHeads) -> None:
    jobs = random_jobs([30, 12, 25], SHAPE)
    before = digests(heads, jobs)
    jobs[1] = FitJob(jobs[1].adapter, jobs[1].members.select(slice(1, None)))
    after = digests(heads, jobs)
    assert {adapter for adapter in before if before[adapter] != after[adapter]} == {jobs[1].adapter}


def test_seed_and_number_decide_too(heads: SgdHeads) -> None:
    job = random_jobs([12], SHAPE)[0]
    first = heads.fit([job], SHAPE, 3)[0]
    for adapter, seed in ((job.adapter, 4), (job.adapter + 1, 3), (job.adapter - 1, 4)):
        other = heads.fit([FitJob(adapter, job.members)], SHAPE, seed)[0]
        assert not np.array_equal(first["weights"], other["weights"])


def test_the_others_come_in_the_same_order_without_a_record() -> None:
    job = random_jobs([30], SHAPE)[0]
    without = FitJob(job.adapter, job.members.select(np.arange(30) != 4))
    before, after = (stacks._batches(each, 3, 32, 0)[:, :29] for each in (job, without))
    whole = stacks._batches(job, 3, 32, 0)
    for epoch in range(3):
        rest = whole[epoch][(whole[epoch] != 4) & (whole[epoch] >= 0)]
        assert np.array_equal(rest - (rest > 4), after[epoch])
    assert not np.array_equal(before[0], before[1]), "epochs have orders of their own"


def by_autograd(heads: SgdHeads, job: FitJob, shape: HeadShape, seed: int) -> dict[str, torch.Tensor]:
    """Train like `SgdHeads.fit`, with torch's layers, losses and optimisers, and nothing padded."""
    weights = {}
    for name, (rows, columns) in sgd_training._sides(heads, shape).items():
        first = sgd_training._first_weights(heads, [job], name, (rows, columns), seed)[0, :rows, :columns]
        weights[name] = first.double().requires_grad_()
    if heads.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            weights.values(), heads.learning_rate, heads.momentum, weight_decay=heads.weight_decay
        )
    else:
        optimizer = torch.optim.AdamW(weights.values(), heads.learning_rate, weight_decay=heads.weight_decay)
    for batch in stacks._batches(job, heads.epochs, heads.batch_size, seed):
        chosen = batch[batch >= 0]
        values = torch.from_numpy(job.members.codes[chosen]).double() / 256
        for name in sorted(weights):
            layer = weights[name]
            if name == "weights" and heads.hidden:
                values = values.relu()
            values = functional.linear(values, layer[:-1].T, layer[-1])
        optimizer.zero_grad()
        functional.cross_entropy(values, torch.from_numpy(job.members.labels[chosen])).backward()
        optimizer.step()
    return {name: weight.detach() for name, weight in weights.items()}


def test_training_is_that_of_torch_without_padding(heads: SgdHeads) -> None:
    job = random_jobs([23], SHAPE)[0]
    fitted = heads.fit([job], SHAPE, 3)[0]
    expected = by_autograd(heads, job, SHAPE, 3)
    assert fitted.keys() == expected.keys()
    for name, weight in expected.items():
        assert fitted[name].dtype == np.float32
        assert np.abs(fitted[name] - weight.numpy()).max() < 2e-5


def test_scores_are_probabilities_of_the_network(heads: SgdHeads) -> None:
    job = random_jobs([23], SHAPE)[0]
    state = heads.fit([job], SHAPE, 3)[0]
    scores = heads.scores(state, job.members.codes)
    values = torch.from_numpy(job.members.codes).double() / 256
    for name in sorted(state):
        if name == "weights" and heads.hidden:
            values = values.relu()
        layer = torch.from_numpy(state[name]).double()
        values = values @ layer[:-1] + layer[-1]
    assert scores.dtype == np.float64
    assert np.allclose(scores, values.softmax(dim=1).numpy(), atol=1e-12)


def test_far_codes_stay_finite() -> None:
    records = random_jobs([30], SHAPE)[0].members
    records.codes[0] = 32767
    state = HEADS["linear"].fit([FitJob(0, records)], SHAPE, 0)[0]
    assert np.isfinite(HEADS["linear"].scores(state, records.codes)).all()


@pytest.mark.parametrize(
    ("heads", "least"),
    [
        (SgdHeads(), 0.92),
        (SgdHeads(hidden=16), 0.90),
        (SgdHeads(optimizer="adamw", learning_rate=0.003), 0.90),
    ],
)
def test_ensembles_learn_the_digits(heads: SgdHeads, least: float) -> None:
    records, _, _ = digits()
    held_out = np.arange(len(records)) % 4 == 0
    ensemble = AdapterEnsemble.fit(digits_recipe(heads, 20, 3), records.select(~held_out))
    found = ensemble.scores(records.codes[held_out]).scores.argmax(axis=1)
    assert (found == records.labels[held_out]).mean() > least


def test_a_stack_of_another_size_says_so_in_the_recipe_and_learns_the_same() -> None:
    job = random_jobs([23], SHAPE)[0]
    one, many = (replace(HEADS["linear"], stack=stack) for stack in (1, 16))
    weights = [each.fit([job], SHAPE, 3)[0]["weights"] for each in (one, many)]
    assert np.abs(weights[0] - weights[1]).max() < 1e-5
    assert digits_recipe(one).digest != digits_recipe(many).digest


def test_visits_count_every_epoch() -> None:
    job = random_jobs([23], SHAPE)[0]
    heads = HEADS["linear"]
    assert heads.visits(23) == 4 * 23 == (stacks._batches(job, heads.epochs, heads.batch_size, 0) >= 0).sum()


def test_members_are_left_as_they_are(heads: SgdHeads) -> None:
    job = random_jobs([23], SHAPE)[0]
    before = job.members.digest
    heads.fit([job], SHAPE, 3)
    assert isinstance(job.members, Records)
    assert job.members.digest == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": -1}, "hidden of at least 0, got -1"),
        ({"epochs": 0}, "epochs of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"stack": 0}, "stack of at least 1"),
        ({"learning_rate": 0.0}, "learning_rate above 0"),
        ({"learning_rate": float("nan")}, "learning_rate above 0"),
        ({"momentum": 1.0}, "momentum from 0 to below 1"),
        ({"weight_decay": -0.1}, "weight_decay of at least 0"),
        ({"optimizer": "lbfgs"}, "sgd or adamw, got 'lbfgs'"),
    ],
)
def test_settings_that_cannot_train_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SgdHeads(**settings)  # type: ignore[arg-type]
