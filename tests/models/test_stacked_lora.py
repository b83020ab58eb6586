"""Adapters beside frozen layers compute what merged weights compute, each part of a batch its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_denoisers import shared_denoiser
from torch import Tensor, nn

from gen_unlearn.models.stacked_lora import Factors, LoraLayer, adapted, factor_shapes, lora_layers

ADAPTERS, ROWS, SCALE = 3, 2, 1.7

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "padding": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilation": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "all": {"kernel_size": (3, 2), "padding": (2, 1), "stride": (1, 2), "dilation": (2, 1), "bias": False},
    "same": {"kernel_size": 3, "padding": "same"},
    "pointwise": {"kernel_size": 1},
}


def random_factors(layer: LoraLayer, rank: int = 4, adapters: int = ADAPTERS, seed: int = 1) -> Factors:
    draw = torch.Generator().manual_seed(seed)
    down, up = factor_shapes(layer, rank)
    return Factors(
        torch.randn(adapters, *down, generator=draw) / 4, torch.randn(adapters, *up, generator=draw) / 4
    )


def merged(layer: LoraLayer, factors: Factors, place: int) -> Tensor:
    change = factors.up[place].flatten(1) @ factors.down[place].flatten(1)
    return layer.weight + SCALE * change.view_as(layer.weight)


@torch.no_grad()
def through(layer: LoraLayer, factors: Factors, inputs: Tensor) -> Tensor:
    with adapted({"layer": layer}, {"layer": factors}, SCALE):
        found: Tensor = layer(inputs)
    return found


@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=list(CONVOLUTIONS))
@torch.no_grad()
def test_convolutions_are_those_of_merged_weights(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(5, 7, **settings), torch.randn(ADAPTERS * ROWS, 5, 9, 8)
    factors = random_factors(layer)
    found = through(layer, factors, inputs)
    for place in range(ADAPTERS):
        rows = slice(place * ROWS, (place + 1) * ROWS)
        expected = F.conv2d(
            inputs[rows],
            merged(layer, factors, place),
            layer.bias,
            layer.stride,
            layer.padding,
            layer.dilation,
        )
        assert (found[rows] - expected).abs().max() < 1e-5
        assert (expected - layer(inputs[rows])).abs().max() > 0.1


@pytest.mark.parametrize("middle", [(), (6,), (2, 3)], ids=["vectors", "tokens", "grids"])
@torch.no_grad()
def test_linear_layers_are_those_of_merged_weights(middle: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(10, 7), torch.randn(ADAPTERS * ROWS, *middle, 10)
    factors = random_factors(layer)
    found = through(layer, factors, inputs)
    assert found.shape == (ADAPTERS * ROWS, *middle, 7)
    for place in range(ADAPTERS):
        rows = slice(place * ROWS, (place + 1) * ROWS)
        expected = F.linear(inputs[rows], merged(layer, factors, place), layer.bias)
        assert (found[rows] - expected).abs().max() < 1e-5
        assert (expected - layer(inputs[rows])).abs().max() > 0.1


@pytest.mark.parametrize("layer", [nn.Linear(10, 7), nn.Conv2d(10, 7, 3, padding=1)], ids=["linear", "conv"])
def test_a_part_depends_on_its_own_rows_and_its_own_adapter_alone(layer: LoraLayer) -> None:
    shape = (10,) if isinstance(layer, nn.Linear) else (10, 6, 6)
    draw = torch.Generator().manual_seed(0)
    inputs, factors = torch.randn(ADAPTERS * ROWS, *shape, generator=draw), random_factors(layer)
    expected = through(layer, factors, inputs)
    others = inputs.clone()
    others[:ROWS] = torch.randn(ROWS, *shape, generator=draw)
    assert torch.equal(through(layer, factors, others)[ROWS:], expected[ROWS:])
    down, up = factors.down.clone(), factors.up.clone()
    down[0], up[2] = 0, 100
    found = through(layer, Factors(down, up), inputs)
    same = [torch.equal(*parts) for parts in zip(found.split(ROWS), expected.split(ROWS), strict=True)]
    assert same == [False, True, False]


def test_gradients_reach_the_factors_of_their_part_alone() -> None:
    layer = nn.Conv2d(4, 5, 3, padding=1).requires_grad_(False)
    factors = random_factors(layer)
    for part in factors:
        part.requires_grad_()
    with adapted({"layer": layer}, {"layer": factors}, SCALE):
        layer(torch.ones(ADAPTERS * ROWS, 4, 6, 6))[ROWS : 2 * ROWS].square().sum().backward()
    for part in factors:
        assert part.grad is not None
        assert [bool(gradient.any()) for gradient in part.grad] == [False, True, False]


def test_adapters_are_gone_afterwards_also_after_an_error() -> None:
    denoiser = shared_denoiser()
    layers = lora_layers(denoiser.network, ("to_q", "conv1"))
    factors = {name: random_factors(layer, 2) for name, layer in layers.items()}
    noisy, labels = torch.ones(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64).numpy()
    before = denoiser.predict(noisy, torch.tensor(3), labels)
    with adapted(layers, factors, SCALE):
        assert not torch.allclose(denoiser.predict(noisy, torch.tensor(3), labels), before, atol=1e-3)
    assert torch.equal(denoiser.predict(noisy, torch.tensor(3), labels), before)
    with pytest.raises(RuntimeError), adapted(layers, factors, SCALE):
        denoiser.predict(torch.ones(6, 2, 8, 8), torch.tensor(3), labels)
    missing = dict(list(factors.items())[:-1])
    with pytest.raises(KeyError), adapted(layers, missing, SCALE):
        pass
    assert torch.equal(denoiser.predict(noisy, torch.tensor(3), labels), before)
    assert not any(layer._forward_hooks for layer in layers.values())


@pytest.mark.parametrize("layer", [nn.Linear(10, 7), nn.Conv2d(10, 7, 1)], ids=["linear", "conv"])
def test_a_batch_that_cannot_be_divided_is_an_error(layer: LoraLayer) -> None:
    inputs = torch.ones(4, 6, 10) if isinstance(layer, nn.Linear) else torch.ones(4, 10, 6, 6)
    with pytest.raises(ValueError, match="divided into 3 equal parts, got 4 rows"):
        through(layer, random_factors(layer), inputs)


def test_layers_are_found_by_the_ends_of_their_names() -> None:
    network = shared_denoiser().network
    found = lora_layers(network, ("to_q", "to_out.0"))
    assert all(name.endswith((".to_q", ".to_out.0")) for name in found)
    assert len(found) == 2 * sum(name.endswith(".to_q") for name in found)
    assert lora_layers(network, ("conv_in",)).keys() == {"conv_in"}
    middle = lora_layers(network, ("to_q",), lambda name: name.startswith("mid_block"))
    assert middle.keys() == {"mid_block.attentions.0.to_q"}
    for name, layer in found.items():
        assert layer is network.get_submodule(name)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("o_q", "nothing"), "end in o_q, nothing, as lora.targets says, found none; there are"),
        (("group_norm",), "plain convolutions to adapt, got .*group_norm, a GroupNorm; take it out"),
        (("class_embedding",), "a Embedding"),
    ],
)
def test_other_layers_are_refused(targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lora_layers(shared_denoiser().network, targets)


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding_mode="circular", padding=1)]
)
def test_convolutions_with_groups_or_other_padding_are_refused(layer: nn.Conv2d) -> None:
    with pytest.raises(ValueError, match="expected linear layers and plain convolutions"):
        lora_layers(nn.ModuleDict({"odd": layer}), ("odd",))


def test_factors_have_the_shapes_of_peft() -> None:
    assert factor_shapes(nn.Linear(10, 7), 4) == ((4, 10), (7, 4))
    assert factor_shapes(nn.Conv2d(10, 7, (3, 2)), 4) == ((4, 10, 3, 2), (7, 4, 1, 1))
