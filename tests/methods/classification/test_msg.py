"""Masked small gradients: which weights are drawn anew, and how the others are trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.msg import Msg
from gen_unlearn.methods.logits import cross_entropy
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.repro import digest_state, image_ids, keyed_order

CPU = Accelerator(cpu=True)


def request(count: int = 30, forget: int = 6) -> UnlearnData:
    draws = np.random.default_rng(6)
    pixels = draws.integers(0, 256, (count, 6, 6, 1)).astype(np.uint8)
    labels, names = draws.integers(0, 3, count), tuple(str(row) for row in range(count))
    data = IndexedImages(pixels, labels, image_ids(pixels), ("a", "b", "c"), names)
    rows = np.arange(count)
    return UnlearnData(data.select(rows[:forget]), data.select(rows[forget:]), data.select(rows[:0]))


def network() -> nn.Sequential:
    torch.manual_seed(2)
    parts = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(32, 3))


def clone(model: nn.Module) -> nn.Module:
    other = network()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("fraction", [0.1, 0.3, 1.0])
def test_the_smallest_gradients_are_drawn_anew(fraction: float) -> None:
    model, data = network(), request()
    changed = clone(model)
    masks = Msg(fraction=fraction).restart(changed, data, seed=3, budget=Budget())
    some = keyed_order(data.retain.ids, "msg", 3)[:6]
    evaluated = clone(model).eval()
    loss = cross_entropy(evaluated, batch_of(data.retain, some))
    (loss - cross_entropy(evaluated, batch_of(data.forget, np.arange(6)))).backward()
    assert sorted(masks) == ["0.weight", "3.weight"]
    for name, mask in masks.items():
        size = evaluated.get_parameter(name).grad.abs()
        assert mask.sum() == round(fraction * mask.numel())
        assert fraction == 1 or size[mask].max() <= size[~mask].min() + 1e-7
    for name, parameter in changed.named_parameters():
        expected = masks.get(name, torch.zeros_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter != model.get_parameter(name), expected)


def test_new_weights_have_the_variance_of_he() -> None:
    changed = network()
    Msg(fraction=1.0).restart(changed, request(), seed=0, budget=Budget())
    weight = changed[3].weight
    assert abs(weight.var().item() / (2 / 72) - 1) < 4 * (2 / 576) ** 0.5


def test_a_kept_weight_takes_a_tenth_of_the_step() -> None:
    model, data = network(), request()
    common = {"epochs": 1, "momentum": 0.0, "batch_retain": 24, "decay": "constant", "freeze_bn_stats": True}
    started = clone(model)
    masks = Msg().restart(started, data, seed=0, budget=Budget())
    found = Msg(**common, lr=0.5)(model, data, accelerator=CPU, seed=0, budget=Budget())
    evaluated = clone(started).eval()
    cross_entropy(evaluated, batch_of(data.retain, np.arange(24))).backward()
    for name, parameter in started.named_parameters():
        scale = torch.where(masks[name], 1.0, 0.1) if name in masks else 0.1
        expected = parameter - 0.5 * scale * evaluated.get_parameter(name).grad
        torch.testing.assert_close(found.get_parameter(name), expected, rtol=1e-4, atol=1e-5)


def test_kept_weights_can_stay_as_they_are() -> None:
    model, data = network(), request()
    found = Msg(kept_scale=0.0, epochs=1)(model, data, accelerator=CPU, seed=0, budget=Budget())
    assert torch.equal(found[5].weight, model[5].weight)
    assert 0.2 < (found[3].weight != model[3].weight).float().mean() < 0.4


def test_costs_what_is_counted_and_follows_the_seed() -> None:
    model, data, method = network(), request(), Msg(epochs=2)
    first, again, other = (unlearn(method, model, data, accelerator=CPU, seed=seed) for seed in (0, 0, 1))
    assert first.cost.forward_samples == 2 * 24 + 12
    digests = [digest_state(found.model.state_dict()) for found in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_linear_layers_are_asked_for_by_name() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="set layers to matrices"):
        unlearn(Msg(), model, request(), accelerator=CPU, seed=0)
    masks = Msg(layers="matrices").restart(model, request(), seed=0, budget=Budget())
    assert sorted(masks) == ["1.weight", "3.weight"]


def test_tied_kernels_are_one_weight() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1), *network()[0:])
    model[1].weight = model[0].weight
    masks = Msg(fraction=1.0).restart(model, request(), seed=3, budget=Budget())
    assert list(masks) == ["0.weight", "2.weight", "5.weight"]
    assert model[1].weight is model[0].weight


def test_fewer_retained_than_forgotten_images_are_enough() -> None:
    found = unlearn(Msg(epochs=1), network(), request(forget=25), accelerator=CPU, seed=0)
    assert found.cost.forward_samples == 25 + 5 + 5


@pytest.mark.parametrize("settings", [{"fraction": 0.0}, {"kept_scale": -1.0}, {"layers": "all"}])
def test_refuses_what_makes_no_sense(settings: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        Msg(**settings)
