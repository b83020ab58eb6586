"""Influence unlearning against exact retraining of ridge regression, and against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.influence import InfluenceUnlearning
from gen_unlearn.methods.curvature import flatten
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.per_sample import chosen_weights, per_sample_gradients, summed_gradient
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import image_ids

RIDGE = 0.05


def request(count: int = 40, forget: int = 7) -> UnlearnData:
    draws = np.random.default_rng(3)
    pixels = draws.integers(0, 256, (count, 3, 3, 1)).astype(np.uint8)
    labels, names = draws.integers(0, 3, count), tuple(str(row) for row in range(count))
    data = IndexedImages(pixels, labels, image_ids(pixels), ("a", "b", "c"), names)
    rows = np.arange(count)
    return UnlearnData(data.select(rows[:forget]), data.select(rows[forget:]), data.select(rows[:0]))


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return half the squared distance to one-hot labels, the mean over the batch."""
    return 0.5 * (outputs - F.one_hot(labels, 3)).square().sum(1).mean()


def ridge_solution(*parts: IndexedImages) -> Tensor:
    """Return the weights ``(3, 9)`` that minimise the mean squared error + RIDGE / 2 |weights|^2."""
    inputs = torch.cat([to_model_input(part.images) for part in parts]).flatten(1).double()
    targets = F.one_hot(torch.cat([torch.from_numpy(part.labels) for part in parts]), 3).double()
    hessian = inputs.T @ inputs / len(inputs) + RIDGE * torch.eye(9).double()
    return torch.linalg.solve(hessian, inputs.T @ targets / len(inputs)).T


def linear(weights: Tensor) -> nn.Sequential:
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(weights)
    return model


@pytest.mark.parametrize("forget", [1, 7, 20])
def test_ridge_regression_is_retrained_exactly(forget: int) -> None:
    data = request(forget=forget)
    model, retrained = linear(ridge_solution(data.forget, data.retain)), ridge_solution(data.retain)
    before = (model[1].weight - retrained).norm()
    method = InfluenceUnlearning(curvature="ggn_cg", damping=RIDGE, tolerance=1e-14, iterations=200)
    method.step(model, data, squared_error, budget=Budget())
    assert before > 1e-3
    assert (model[1].weight - retrained).norm() < 1e-10


def test_half_a_step_goes_half_the_way() -> None:
    data = request()
    original, retrained = ridge_solution(data.forget, data.retain), ridge_solution(data.retain)
    model = linear(original)
    method = InfluenceUnlearning(
        curvature="ggn_cg", damping=RIDGE, tolerance=1e-14, iterations=200, alpha=0.5
    )
    method.step(model, data, squared_error, budget=Budget())
    torch.testing.assert_close(model[1].weight.detach(), (original + retrained) / 2, rtol=0, atol=1e-10)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def in_double(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.inputs), batch.labels)


def right_side(model: nn.Module, data: UnlearnData) -> Tensor:
    forget = flatten(summed_gradient(model, data.forget, in_double, budget=Budget()))
    retain = flatten(summed_gradient(model, data.retain, in_double, budget=Budget()))
    return forget / 40 - 7 / (40 * 33) * retain


@pytest.mark.parametrize("curvature", ["fisher_woodbury", "diag", "identity"])
def test_step_is_that_of_the_dense_matrix(curvature: str) -> None:
    data, model = request(), network()
    weights = chosen_weights(model)
    found = per_sample_gradients(model, batch_of(data.retain, np.arange(33)), in_double)
    rows = torch.cat([found[name].flatten(1) for name in weights], dim=1)
    fisher = rows.T @ rows / 33
    matrix = {
        "fisher_woodbury": fisher + 0.1 * torch.eye(len(fisher)).double(),
        "diag": fisher.diagonal().diag() + 0.1 * torch.eye(len(fisher)).double(),
        "identity": torch.eye(len(fisher)).double(),
    }[curvature]
    expected = flatten(weights) + 2 * torch.linalg.solve(matrix, right_side(model, data))
    method = InfluenceUnlearning(curvature=curvature, damping=0.1, alpha=2.0, block_bytes=10 * 81 * 8)
    method.step(model, data, F.cross_entropy, budget=Budget())
    torch.testing.assert_close(flatten(chosen_weights(model)), expected, rtol=1e-9, atol=1e-12)


def test_woodbury_step_is_not_along_the_gradient() -> None:
    data, model = request(), network()
    before, right = flatten(chosen_weights(model)), right_side(model, data)
    InfluenceUnlearning(damping=1e-3).step(model, data, F.cross_entropy, budget=Budget())
    moved = flatten(chosen_weights(model)) - before
    assert 0 < F.cosine_similarity(moved, right, dim=0) < 0.95


def test_the_step_raises_the_loss_of_what_is_forgotten() -> None:
    data, model = request(), network().float()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    inputs = torch.cat([to_model_input(part.images) for part in (data.forget, data.retain)])
    labels = torch.from_numpy(np.concatenate([data.forget.labels, data.retain.labels]))
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    found = unlearn(InfluenceUnlearning(), model, data, accelerator=Accelerator(cpu=True), seed=0)
    rise = F.cross_entropy(found.model(inputs), labels, reduction="none")
    rise = (rise - F.cross_entropy(model(inputs), labels, reduction="none")).detach()
    assert rise[:7].mean() > 3 * rise[7:].mean().abs()
    assert found.cost.forward_samples == found.cost.backward_samples == 40 + 33


def test_only_the_modules_that_are_named_move_and_seeds_change_nothing() -> None:
    data, model = request(), network()
    method = InfluenceUnlearning(modules=("3",), samples=10)
    first, second = (
        unlearn(method, model, data, accelerator=Accelerator(cpu=True), seed=seed).model for seed in (0, 1)
    )
    assert torch.equal(first[1].weight, model[1].weight)
    assert not torch.equal(first[3].weight, model[3].weight)
    assert torch.equal(first[3].weight, second[3].weight)
    with pytest.raises(ValueError, match="names of modules"):
        InfluenceUnlearning(modules=("head",)).step(model, data, F.cross_entropy, budget=Budget())


@pytest.mark.parametrize(
    "settings",
    [{"alpha": 0.0}, {"damping": -1.0}, {"samples": 0}, {"block_bytes": 0}, {"curvature": "exact"}],
)
def test_refuses_what_makes_no_sense(settings: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        InfluenceUnlearning(**settings)
