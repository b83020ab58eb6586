"""Fresh weights for parts of a model."""

from __future__ import annotations

import copy

import pytest
import torch
from small_requests import same_state, small_batch_norm_cnn, small_group_norm_cnn
from torch import nn

from gen_unlearn.benchmark.networks import NetworkConfig, build_network
from gen_unlearn.methods.reinitialise import reinit


class OwnWeight(nn.Module):
    """A module with a weight that nothing resets."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))


def test_reaches_all_of_a_resnet() -> None:
    network = build_network(NetworkConfig(kind="resnet18", width=64), (3, 32, 32), 10, seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert reinit(network, [""], seed=1) == 11_173_962
    drawn = [name for name, parameter in network.named_parameters() if parameter.ndim > 1]
    assert len(drawn) == 21
    assert all(not torch.equal(network.state_dict()[name], before[name]) for name in drawn)


@pytest.mark.parametrize(
    ("kind", "width"), [("mlp", 400), ("cnn", 32), ("resnet18", 32)], ids=["mlp", "cnn", "resnet18"]
)
def test_draws_by_the_law_of_the_constructor(kind: str, width: int) -> None:
    """As retraining would, in every layer: the same deviation, kurtosis and constants."""
    config = NetworkConfig(kind=kind, width=width)  # type: ignore[arg-type]
    fresh, drawn = (build_network(config, (3, 8, 8), 10, seed=seed) for seed in (0, 1))
    start = copy.deepcopy(drawn)
    reinit(drawn, [""], seed=0)
    for name, expected in fresh.named_parameters():
        found = drawn.get_parameter(name)
        assert (found.unique().numel() == 1) == (expected.unique().numel() == 1), name
        if expected.unique().numel() == 1:
            assert torch.equal(found, expected), name
            continue
        assert not torch.equal(found, start.get_parameter(name)), name
        rel = 5 / expected.numel() ** 0.5
        assert found.std().item() == pytest.approx(expected.std().item(), rel=rel), name
        if expected.numel() > 800:
            tails = [(w.abs().max() / w.std()).item() for w in (found, expected)]
            assert tails[0] == pytest.approx(tails[1], abs=0.05 if tails[1] < 2 else 1.5), name
            assert (tails[0] < 2) == (tails[1] < 2), f"uniform or normal: {name}"


@pytest.mark.parametrize("name", ["layers.0", "layers.3.first.0", "layers.3.shortcut"])
def test_a_part_of_a_resnet_is_drawn_by_the_law_of_the_whole(name: str) -> None:
    network = build_network(NetworkConfig(kind="resnet18", width=32), (3, 8, 8), 10, seed=0)
    part = network.get_submodule(f"encoder.{name}")
    convolution = next(module for module in part.modules() if isinstance(module, nn.Conv2d))
    before = convolution.weight.std().item()
    reinit(network, [f"encoder.{name}"], seed=1)
    assert convolution.weight.std().item() == pytest.approx(before, rel=0.15)


def test_changes_the_named_modules_alone() -> None:
    network = small_batch_norm_cnn()
    before = copy.deepcopy(network)
    assert reinit(network, ["1", "3"], seed=0) == 6 * 4 * 9 + 2 * 6 + 24 * 3 + 3
    for name, value in before.state_dict().items():
        assert torch.equal(network.state_dict()[name], value) == (name[0] not in "13" or "1.1." in name)


def test_restores_running_statistics() -> None:
    network = small_batch_norm_cnn().train()
    fresh = copy.deepcopy(network[0][1].state_dict())
    with torch.no_grad():
        network(torch.randn(8, 1, 4, 4))
        network[0][1].weight.mul_(3)
    assert not torch.equal(network[0][1].running_mean, fresh["running_mean"])
    assert reinit(network, ["0.1"], seed=0) == 8
    assert all(torch.equal(network[0][1].state_dict()[name], value) for name, value in fresh.items())


def test_the_seed_and_the_name_decide() -> None:
    one, other, third = (small_group_norm_cnn(seed) for seed in (0, 1, 0))
    state = torch.random.get_rng_state()
    reinit(one, [""], seed=5)
    reinit(other, [""], seed=5)
    reinit(third, ["head"], seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same_state(one, other)
    assert same_state(one.head, third.head)
    reinit(other, [""], seed=6)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_overlapping_names_count_once() -> None:
    assert reinit(small_batch_norm_cnn(), ["0", "0.0"], seed=0) == 4 * 9 + 8


@pytest.mark.parametrize("names", [[], ["absent"], ["0.7"]])
def test_refuses_unknown_names(names: list[str]) -> None:
    with pytest.raises(ValueError, match="expected names of modules of Sequential"):
        reinit(small_batch_norm_cnn(), names, seed=0)


def test_refuses_what_it_cannot_reset_and_changes_nothing() -> None:
    network = nn.Sequential(nn.Linear(2, 2), OwnWeight())
    before = copy.deepcopy(network)
    with pytest.raises(ValueError, match=r"1 \(OwnWeight\) to have reset_parameters"):
        reinit(network, [""], seed=0)
    assert same_state(network, before)
    assert reinit(network, ["0"], seed=0) == 6


def test_resets_attention() -> None:
    network = nn.MultiheadAttention(4, 2)
    before = network.in_proj_weight.detach().clone()
    reinit(network, [""], seed=0)
    assert not torch.equal(network.in_proj_weight, before)
