"""Selective synaptic dampening, with and without labels, against the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.lfssd import Lfssd
from gen_unlearn.methods.classification.ssd import Ssd, dampen
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.per_sample import per_sample_fisher, squared_output_norm
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.repro import digest_state, image_ids

CPU = Accelerator(cpu=True)


def request(forget: int = 6, count: int = 40) -> UnlearnData:
    draws = np.random.default_rng(4)
    pixels = draws.integers(0, 256, (count, 4, 4, 1)).astype(np.uint8)
    labels, names = draws.integers(0, 3, count), tuple(str(row) for row in range(count))
    data = IndexedImages(pixels, labels, image_ids(pixels), ("a", "b", "c"), names)
    rows = np.arange(count)
    return UnlearnData(data.select(rows[:forget]), data.select(rows[forget:]), data.select(rows[:0]))


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("method", [Ssd(alpha=1.5, dampening=0.7), Lfssd(alpha=1.1, dampening=0.3)])
def test_weights_follow_the_formula(method: Ssd) -> None:
    model, data = network(), request()
    forget, everything = {}, {}
    for part, into in (([data.forget], forget), ([data.forget, data.retain], everything)):
        rows = [batch_of(one, np.array([row])) for one in part for row in range(len(one))]
        for name, parameter in model.named_parameters():
            total = torch.zeros_like(parameter, dtype=torch.float64)
            for batch in rows:
                (gradient,) = torch.autograd.grad(method.loss()(model, batch), [parameter])
                total += gradient.double() ** 2
            into[name] = total / len(rows)
    found = unlearn(method, model, data, accelerator=CPU, seed=0)
    moved = 0
    for name, parameter in model.named_parameters():
        chosen = forget[name] > method.alpha * everything[name]
        factor = (method.dampening * everything[name] / forget[name]).clamp(max=1)
        expected = torch.where(chosen, parameter * factor, parameter.double()).float()
        torch.testing.assert_close(found.model.get_parameter(name), expected, rtol=1e-4, atol=1e-6)
        moved += int(chosen.sum())
    assert 0 < moved < 163
    assert found.cost.forward_samples == found.cost.backward_samples == 40


def test_dampening_of_zero_zeroes_the_selection_alone() -> None:
    model, data = network(), request()
    found = unlearn(Ssd(alpha=1.5, dampening=0.0), model, data, accelerator=CPU, seed=0).model
    zeros = 0
    for before, after in zip(model.parameters(), found.parameters(), strict=True):
        assert ((after == 0) | (after == before)).all()
        zeros += int((after == 0).sum())
    assert 0 < zeros < 163


def test_a_great_alpha_selects_nothing_and_says_so() -> None:
    with pytest.raises(ValueError, match=r"lower alpha below 6\.67"):
        unlearn(Ssd(alpha=10), network(), request(), accelerator=CPU, seed=0)
    with pytest.raises(ValueError, match=r"lower alpha$"):
        unlearn(Ssd(alpha=1e9, reference="retain"), network(), request(), accelerator=CPU, seed=0)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 1e30])
def test_equal_importance_selects_nothing(alpha: float) -> None:
    model, data = network(), request()
    fisher = per_sample_fisher(model, data.forget, budget=Budget())
    before = digest_state(model.state_dict())
    assert dampen(model, fisher, fisher, alpha=alpha, dampening=0.0) == 0
    assert digest_state(model.state_dict()) == before


def test_rounding_selects_nothing() -> None:
    model, data = network(), request(forget=7)
    forget = per_sample_fisher(model, data.forget, budget=Budget())
    everything = {name: value / (40 / 7) * (1 - 1e-12) for name, value in forget.items()}
    assert dampen(model, forget, everything, alpha=40 / 7, dampening=0.0) == 0


def test_weights_without_importance_stay_finite() -> None:
    model, data = network(), request()
    with torch.no_grad():
        model[1].bias[:4] = -1e3
    found = unlearn(Ssd(alpha=1.2, reference="retain"), model, data, accelerator=CPU, seed=0).model
    assert torch.equal(found[1].weight[:4], model[1].weight[:4])


def test_neither_seed_nor_microbatch_matters() -> None:
    model, data = network(), request()
    first = unlearn(Ssd(alpha=1.5), model, data, accelerator=CPU, seed=0).model
    again = unlearn(Ssd(alpha=1.5), model, data, accelerator=CPU, seed=1).model
    other = unlearn(Ssd(alpha=1.5, microbatch=3), model, data, accelerator=CPU, seed=0).model
    assert digest_state(first.state_dict()) == digest_state(again.state_dict())
    for one, two in zip(first.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_loss_free_importance_is_another_one() -> None:
    assert Lfssd.loss() is squared_output_norm
    model, data = network(), request()
    first = unlearn(Ssd(alpha=1.2), model, data, accelerator=CPU, seed=0).model
    other = unlearn(Lfssd(alpha=1.2), model, data, accelerator=CPU, seed=0).model
    assert digest_state(first.state_dict()) != digest_state(other.state_dict())


@pytest.mark.parametrize(
    "settings", [{"alpha": 0.0}, {"dampening": -0.1}, {"microbatch": 0}, {"reference": "test"}]
)
def test_refuses_what_makes_no_sense(settings: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        Ssd(**settings)
