"""The networks of the benchmark: size, initialisation, normalisation and the list of blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gen_unlearn.benchmark.networks import NetworkConfig, blocks, build_network
from gen_unlearn.data import load_digits_images
from gen_unlearn.pixels import to_model_input

SHAPES = {"mlp": (1, 8, 8), "cnn": (3, 16, 16), "resnet18": (3, 16, 16)}
WIDTHS = {"mlp": 64, "cnn": 8, "resnet18": 4}


@pytest.mark.parametrize("kind", SHAPES)
def test_the_seed_alone_decides_the_weights(kind: str) -> None:
    config = NetworkConfig(kind, WIDTHS[kind])  # type: ignore[arg-type]
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = build_network(config, SHAPES[kind], 10, seed=1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    again = build_network(config, SHAPES[kind], 10, seed=1).state_dict()
    other = build_network(config, SHAPES[kind], 10, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("kind", SHAPES)
def test_the_blocks_hold_every_parameter_once_and_the_head_comes_last(kind: str) -> None:
    network = build_network(NetworkConfig(kind, WIDTHS[kind]), SHAPES[kind], 10, seed=0)  # type: ignore[arg-type]
    names = blocks(network)
    assert names[-1] == "head"
    assert network.get_submodule(names[-1]).weight.shape[0] == 10
    counts = [sum(p.numel() for p in network.get_submodule(name).parameters()) for name in names]
    assert min(counts) > 0
    assert sum(counts) == sum(p.numel() for p in network.parameters())
    assert network(torch.zeros(2, *SHAPES[kind])).shape == (2, 10)


def test_a_resnet_18_of_cifar_has_the_published_size() -> None:
    network = build_network(NetworkConfig("resnet18", 64), (3, 32, 32), 10, seed=0)
    assert sum(p.numel() for p in network.parameters()) == 11_173_962


def test_the_perceptron_starts_uniform_within_the_inverse_root_of_its_inputs() -> None:
    network = build_network(NetworkConfig("mlp", 400), (1, 8, 8), 10, seed=0)
    for layer, inputs in ((network.hidden, 64), (network.head, 400)):
        bound = 1 / math.sqrt(inputs)
        assert 0.99 * bound < layer.weight.abs().max().item() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert layer.bias.abs().max().item() <= bound


def test_the_perceptron_sees_digits_as_sixteenths() -> None:
    from sklearn.datasets import load_digits

    network = build_network(NetworkConfig(), (1, 8, 8), 10, seed=0)
    seen = network.normalise(to_model_input(load_digits_images().images[:20]))
    np.testing.assert_allclose(seen[:, 0].numpy(), load_digits().images[:20] / 16, atol=0.5 / 255 + 1e-6)


def test_each_channel_is_normalised_by_its_own_mean_and_deviation() -> None:
    config = NetworkConfig("cnn", 8, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    expected = (images.movedim(1, -1) + 1) / 2
    expected = (expected - torch.tensor(config.mean)) / torch.tensor(config.std)
    network = build_network(config, (3, 4, 4), 10, seed=0)
    torch.testing.assert_close(network.normalise(images).movedim(1, -1), expected)
    assert not any("normalise" in name for name in network.state_dict())


def test_an_image_of_the_cnn_does_not_depend_on_its_batch_even_in_training_mode() -> None:
    network = build_network(NetworkConfig("cnn", 8), (1, 8, 8), 10, seed=0).train()
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


@pytest.mark.parametrize(
    "change", [{"kind": "vit"}, {"width": 0}, {"depth": 0}, {"std": (0.0,)}, {"mean": (0.0, 0.0)}]
)
def test_impossible_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        NetworkConfig(**change)  # type: ignore[arg-type]


def test_a_normalisation_for_other_channels_a_single_class_and_foreign_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="one for each of the 1 channels"):
        build_network(NetworkConfig(mean=(0.0, 0.0), std=(1.0, 1.0)), (1, 8, 8), 10, seed=0)
    with pytest.raises(ValueError, match="at least 2 classes"):
        build_network(NetworkConfig(), (1, 8, 8), 1, seed=0)
    with pytest.raises(ValueError, match="list its modules"):
        blocks(torch.nn.Linear(2, 2))
