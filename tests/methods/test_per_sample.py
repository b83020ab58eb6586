"""Per-sample gradients against a loop over single images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget, BudgetExceededError
from gen_unlearn.methods.logits import cross_entropy
from gen_unlearn.methods.loop import batch_of, batches_of
from gen_unlearn.methods.per_sample import (
    output_norm_importance,
    per_sample_fisher,
    per_sample_gradients,
    squared_output_norm,
    summed_gradient,
)
from gen_unlearn.repro import digest_state, image_ids


def images(count: int) -> IndexedImages:
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (count, 6, 6, 1)).astype(np.uint8)
    labels = draws.integers(0, 3, count)
    return IndexedImages(
        pixels, labels, image_ids(pixels), ("a", "b", "c"), tuple(str(row) for row in range(count))
    )


def network() -> nn.Module:
    """Return a network whose batch normalisation and dropout would mix images if they were in training."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(64, 3)]
    model = nn.Sequential(*parts)
    for _ in range(3):
        model(torch.randn(16, 1, 6, 6))
    return model


def loop_of_squares(model: nn.Module, data: IndexedImages, loss=cross_entropy) -> dict[str, torch.Tensor]:
    model.eval()
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    for row in range(len(data)):
        model.zero_grad()
        loss(model, batch_of(data, np.array([row]))).backward()
        for name, parameter in model.named_parameters():
            sums[name] += parameter.grad.double() ** 2
    model.zero_grad()
    return {name: total / len(data) for name, total in sums.items()}


def test_gradients_are_those_of_single_images() -> None:
    model, data = network(), images(5)
    found = per_sample_gradients(model, next(batches_of(data, 5)))
    model.eval()
    for row in range(5):
        model.zero_grad()
        cross_entropy(model, batch_of(data, np.array([row]))).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][row], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("microbatch", [1, 4, 16, 100])
def test_fisher_is_the_loop_at_every_batch_size(microbatch: int) -> None:
    model, data = network(), images(21)
    budget = Budget()
    found = per_sample_fisher(model, data, microbatch=microbatch, budget=budget)
    for name, expected in loop_of_squares(model, data).items():
        assert found[name].dtype == torch.float64
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-9)
    assert budget.cost.forward_samples == budget.cost.backward_samples == 21


def test_fisher_is_not_the_square_of_the_mean_gradient() -> None:
    model, data = network(), images(21)
    fisher = per_sample_fisher(model, data, budget=Budget())
    mean = summed_gradient(model, data, budget=Budget())
    assert fisher["5.weight"].sum() > 3 * (mean["5.weight"] / 21).square().sum()


def test_output_norm_importance_ignores_labels() -> None:
    model, data = network(), images(7)
    other = IndexedImages(data.images, (data.labels + 1) % 3, data.ids, data.class_names, data.names)
    found = output_norm_importance(model, data, microbatch=3, budget=Budget())
    swapped = output_norm_importance(model, other, microbatch=3, budget=Budget())
    for name, expected in loop_of_squares(model, data, squared_output_norm).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-9)
        assert torch.equal(found[name], swapped[name])


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_summed_gradient_is_that_of_the_summed_loss(batch_size: int) -> None:
    model, data = network(), images(11)
    found = summed_gradient(model, data, batch_size=batch_size, budget=Budget())
    model.eval()
    (11 * cross_entropy(model, batch_of(data, np.arange(11)))).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name].float(), parameter.grad, rtol=1e-4, atol=1e-5)


def test_the_model_stays_as_it_is() -> None:
    model, data = network().train(), images(9)
    model[1].eval()
    before = digest_state(model.state_dict())
    per_sample_fisher(model, data, budget=Budget())
    summed_gradient(model, data, budget=Budget())
    assert digest_state(model.state_dict()) == before
    assert [module.training for module in model] == [True, False, True, True, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_the_parameters_that_are_named() -> None:
    found = per_sample_gradients(network(), batch_of(images(2), np.arange(2)), names=["5.bias"])
    assert {name: tuple(value.shape) for name, value in found.items()} == {"5.bias": (2, 3)}
    with pytest.raises(ValueError, match="names of parameters"):
        per_sample_gradients(network(), batch_of(images(2), np.arange(2)), names=["head"])


def test_says_what_is_wrong() -> None:
    model, data = network(), images(4)
    with pytest.raises(ValueError, match="expected images"):
        per_sample_fisher(model, data.select(np.arange(0)), budget=Budget())
    with pytest.raises(ValueError, match="microbatch"):
        per_sample_fisher(model, data, microbatch=0, budget=Budget())
    with pytest.raises(BudgetExceededError):
        per_sample_fisher(model, data, microbatch=1, budget=Budget(cap=2))
