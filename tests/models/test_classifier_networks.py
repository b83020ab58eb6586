"""Classifiers: what they map to what, and the same network again from a seed or from disk."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gen_unlearn.models.classifier import (
    ClassifierNetwork,
    ParametricClassifier,
    SemiParametricClassifier,
    build_classifier,
)
from gen_unlearn.models.classifier_config import ClassifierConfig
from gen_unlearn.models.encoder_config import EncoderConfig

SHAPE = (8, 8, 1)
VOTING = ClassifierConfig(encoder=EncoderConfig(width=4, depth=0), key_dim=6, experts=2)
PARAMETRIC = replace(VOTING, kind="parametric")
CONFIGS = pytest.mark.parametrize("config", [VOTING, PARAMETRIC], ids=["semi-parametric", "parametric"])


def build(config: ClassifierConfig, seed: int = 0) -> ClassifierNetwork:
    torch.manual_seed(seed)
    return build_classifier(config, SHAPE, num_classes=3)


def draw(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def outputs(network: ClassifierNetwork, images: Tensor) -> list[Tensor]:
    found = network(images)
    if isinstance(network, ParametricClassifier):
        return [found]
    return [*found, network.keys(network.encoder(images))]


def used(network: ClassifierNetwork) -> ClassifierNetwork:
    """Return a network whose running statistics are not those of the start, in evaluation mode."""
    with torch.no_grad():
        network.train()(draw(16, seed=9))
    return network.eval()


@pytest.mark.parametrize(("key_dim", "experts"), [(1, 1), (6, 1), (16, 3)])
def test_keys_have_length_root_of_key_dim(key_dim: int, experts: int) -> None:
    network = used(build(replace(VOTING, key_dim=key_dim, experts=experts)))
    queries, gate, keys = outputs(network, draw(5))
    assert queries.shape == keys.shape == (5, experts, key_dim)
    expected = torch.full((5, experts), math.sqrt(key_dim))
    torch.testing.assert_close(keys.norm(dim=2), expected)
    torch.testing.assert_close(gate.exp().sum(dim=1), torch.ones(5))
    assert gate.shape == (5, experts)


@pytest.mark.parametrize("experts", [1, 3])
def test_at_first_an_image_is_most_like_itself(experts: int) -> None:
    """Queries start as twice the keys before these are scaled to their length."""
    network, images = used(build(replace(VOTING, experts=experts))), draw(12)
    queries, _, keys = outputs(network, images)
    scores = torch.einsum("bed,ned->ben", queries, keys)
    assert (scores.argmax(dim=2) == torch.arange(12)[:, None]).all()
    torch.testing.assert_close(queries, 2 * network.to_key(network.encoder(images)).view_as(queries))


def test_keys_and_gate_are_single_precision_whatever_the_features_are() -> None:
    network = build(VOTING).to(torch.bfloat16)
    features = torch.ones(2, network.encoder.out_dim, dtype=torch.bfloat16)
    assert network.keys(features).dtype == network.experts(features).dtype == torch.float32


@CONFIGS
def test_an_image_does_not_depend_on_its_batch(config: ClassifierConfig) -> None:
    network, images = used(build(config)), draw(6)
    together = outputs(network, images)
    for row in range(6):
        for whole, alone in zip(together, outputs(network, images[row : row + 1]), strict=True):
            torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-5)


@CONFIGS
def test_weights_are_a_function_of_the_seed(config: ClassifierConfig) -> None:
    one, again, other = (build(config, seed).state_dict() for seed in (3, 3, 4))
    assert one.keys() == again.keys() == other.keys()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@CONFIGS
def test_comes_back_from_disk_bit_for_bit(config: ClassifierConfig, tmp_path: Path) -> None:
    network = used(build(config))
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path, local_files_only=True)
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert not loaded.training
    for whole, again in zip(outputs(network, draw(4)), outputs(loaded, draw(4)), strict=True):
        assert torch.equal(whole, again)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["architecture"]["image_shape"] == [1, 8, 8]
    loaded.save_pretrained(tmp_path / "again")
    (weights,) = tmp_path.glob("*.safetensors")
    assert (tmp_path / "again" / weights.name).read_bytes() == weights.read_bytes()


def test_the_semi_parametric_network_knows_no_classes() -> None:
    torch.manual_seed(0)
    few = build_classifier(VOTING, SHAPE, num_classes=2)
    torch.manual_seed(0)
    many = build_classifier(VOTING, SHAPE, num_classes=1000)
    assert isinstance(few, SemiParametricClassifier)
    assert all(map(torch.equal, few.state_dict().values(), many.state_dict().values()))


def test_both_kinds_have_the_same_encoder() -> None:
    voting, parametric = build(VOTING), build(PARAMETRIC)
    assert voting.config.architecture == parametric.config.architecture
    assert all(
        map(torch.equal, voting.encoder.state_dict().values(), parametric.encoder.state_dict().values())
    )
    assert parametric(draw(5)).shape == (5, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key_dim": 0}, r"key_dim and experts of at least 1, got 0 and 2"),
        ({"experts": 0}, r"key_dim and experts of at least 1, got 6 and 0"),
        ({"exemplar_size": 0}, r"exemplar_size of at least 1 pixel, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(VOTING, **settings)


def test_weights_of_an_encoder_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    encoder = replace(VOTING.encoder, weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(ValueError, match=r"found no such file"):
        build(replace(VOTING, encoder=encoder))
