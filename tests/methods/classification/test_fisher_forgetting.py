"""The noise of Fisher forgetting against its variance, and each published heuristic alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.fisher_forgetting import FisherForgetting
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.per_sample import per_sample_fisher
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.repro import digest_state, image_ids

CPU = Accelerator(cpu=True)


def request(count: int = 30) -> UnlearnData:
    draws = np.random.default_rng(5)
    pixels = draws.integers(0, 256, (count, 4, 4, 1)).astype(np.uint8)
    labels, names = draws.integers(0, 3, count), tuple(str(row) for row in range(count))
    data = IndexedImages(pixels, labels, image_ids(pixels), ("a", "b", "c"), names)
    rows = np.arange(count)
    return UnlearnData(data.select(rows[:5]), data.select(rows[5:]), data.select(rows[:0]))


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.Tanh(), nn.Linear(40, 3)).double()


def noise(method: FisherForgetting, model: nn.Module, seed: int) -> dict[str, Tensor]:
    found = method(model, request(), accelerator=CPU, seed=seed, budget=Budget())
    return {n: (found.get_parameter(n) - p).detach() for n, p in model.named_parameters()}


def test_noise_is_standard_after_division_by_its_deviation() -> None:
    model, method = network(), FisherForgetting(alpha=1e-6)
    fisher = per_sample_fisher(model, request().retain, budget=Budget())
    added = noise(method, model, 0)
    standard = torch.cat([(added[n] / (1e-6 / (fisher[n] + 1e-8)).sqrt()).flatten() for n in added])
    assert len(standard) == 803
    assert standard.mean().abs() < 4 / 803**0.5
    assert (standard.square().mean() - 1).abs() < 4 * (2 / 803) ** 0.5
    assert standard.unique().numel() == 803


def test_noise_grows_with_the_root_of_alpha_and_follows_the_seed() -> None:
    model = network()
    small, large = (noise(FisherForgetting(alpha=alpha), model, 0) for alpha in (1e-8, 4e-8))
    for name in small:
        torch.testing.assert_close(large[name], 2 * small[name], rtol=1e-6, atol=1e-12)
    assert not torch.equal(noise(FisherForgetting(alpha=1e-8), model, 1)["1.weight"], small["1.weight"])
    again = noise(FisherForgetting(alpha=1e-8), model, 0)
    assert all(torch.equal(again[name], small[name]) for name in small)


def test_what_matters_for_retained_images_moves_least() -> None:
    model = network()
    fisher = per_sample_fisher(model, request().retain, budget=Budget())["1.weight"].flatten()
    moves = torch.stack([noise(FisherForgetting(), model, seed)["1.weight"].flatten() for seed in range(20)])
    order = fisher.argsort()
    assert moves[:, order[:100]].square().mean() > 2 * moves[:, order[-100:]].square().mean()


def test_clamps_bound_the_variance_of_the_head_apart() -> None:
    method = FisherForgetting(alpha=1.0, largest_inverse=1e3, largest_inverse_head=1e2, head="3")
    fisher = torch.tensor([[0.0, 1e-2, 0.5]], dtype=torch.float64)
    plain = 1 / (fisher + 1e-8)
    assert torch.equal(method.variance(fisher, "1.weight"), plain.clamp(max=1e3))
    assert torch.equal(method.variance(fisher, "3.weight"), plain.clamp(max=1e2))
    assert torch.equal(FisherForgetting(alpha=1.0).variance(fisher, "3.weight"), plain)


def test_factor_applies_to_vectors_and_to_the_head() -> None:
    method = FisherForgetting(alpha=1.0, vector_factor=10.0, head="3")
    ones = torch.ones(2, 2, dtype=torch.float64)
    assert method.variance(ones[0], "1.bias").sum() > 19.9
    assert method.variance(ones, "3.weight").sum() > 39.9
    assert method.variance(ones, "1.weight").sum() < 4.1


def test_pooling_takes_the_mean_over_inputs() -> None:
    method = FisherForgetting(alpha=1.0, pooling="input_mean")
    fisher = torch.tensor([[0.5, 0.25], [1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(method.variance(fisher, "w")[0], torch.tensor([3.0, 3.0]).double())
    torch.testing.assert_close(method.variance(fisher[0], "b"), torch.tensor([2.0, 4.0]).double())


def test_rows_of_forgotten_classes_start_from_zero() -> None:
    model = network()
    method = FisherForgetting(alpha=1e-12, head="3", head_rows=(1,))
    found = method(model, request(), accelerator=CPU, seed=0, budget=Budget())
    row, kept = found[3].weight[1], found[3].weight[[0, 2]]
    assert 0.005 < row.square().mean().sqrt() < 0.02
    assert (kept - model[3].weight[[0, 2]]).abs().max() < 1e-3
    for head, rows, message in (("head", (1,), "head"), ("3", (3,), "from 0 to 2"), ("3", (-1,), "from 0")):
        with pytest.raises(ValueError, match=message):
            FisherForgetting(head=head, head_rows=rows)(
                model, request(), accelerator=CPU, seed=0, budget=Budget()
            )


def test_costs_one_pass_over_the_retained_images() -> None:
    model = network()
    before = digest_state(model.state_dict())
    found = unlearn(FisherForgetting(), model, request(), accelerator=CPU, seed=0)
    assert (found.cost.forward_samples, found.cost.backward_samples) == (25, 25)
    assert digest_state(model.state_dict()) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.0},
        {"microbatch": 0},
        {"largest_inverse": 0.0},
        {"head_rows": (0,)},
        {"vector_factor": 10.0},
        {"largest_inverse_head": 1e2},
        {"pooling": "max"},
    ],
)
def test_refuses_what_makes_no_sense(settings: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        FisherForgetting(**settings)
