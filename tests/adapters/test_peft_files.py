"""Adapters in peft's format: what peft and diffusers read and compute is what stacks compute."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft.utils.hotswap import hotswap_adapter_from_state_dict
from random_lora import TARGETS, random_adapter, tiny_network, tiny_text_network
from torch import Tensor, nn

from gen_unlearn.adapters.family import AdapterState
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.adapters.peft_files import WEIGHTS_FILE, load_adapter, save_adapter
from gen_unlearn.models.stacked_lora import DOWN, UP, Factors, adapted, lora_layers

LORA = LoraConfig(rank=3, alpha=6.0, targets=TARGETS)
PREFIX = "base_model.model"


def inputs(network: nn.Module) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    made = {"sample": torch.randn(2, 1, 8, 8, generator=draw), "timestep": torch.tensor([5, 60])}
    if hasattr(network, "load_lora_adapter"):
        return made | {"encoder_hidden_states": torch.randn(2, 4, 8, generator=draw)}
    return made | {"class_labels": torch.tensor([0, 2])}


@torch.no_grad()
def stacked(network: nn.Module, states: list[AdapterState]) -> list[Tensor]:
    """Compute with all adapters in one pass."""
    layers = lora_layers(network, TARGETS)
    factors = {
        name: Factors(*(torch.from_numpy(np.stack([s[name + end] for s in states])) for end in (DOWN, UP)))
        for name in layers
    }
    many = {name: torch.cat([part] * len(states)) for name, part in inputs(network).items()}
    with adapted(layers, factors, LORA.scale):
        return list(network(**many).sample.chunk(len(states)))


@torch.no_grad()
def plain(network: nn.Module) -> Tensor:
    return network(**inputs(network)).sample


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def named(state: AdapterState, adapter: str) -> dict[str, Tensor]:
    """Name factors as they are called inside a network, with the adapter's name."""
    return {
        f"{name.removesuffix('.weight')}.{adapter}.weight": torch.from_numpy(a) for name, a in state.items()
    }


def loaded_by_peft(network: nn.Module, folder: Path) -> nn.Module:
    return peft.PeftModel.from_pretrained(network, folder)


def injected(network: nn.Module, folder: Path) -> nn.Module:
    config = peft.LoraConfig.from_pretrained(folder)
    peft.inject_adapter_in_model(config, network)
    state = {name: torch.from_numpy(array) for name, array in load_adapter(folder, LORA).items()}
    result = peft.set_peft_model_state_dict(network, state)
    assert not result.unexpected_keys
    return network


def loaded_by_diffusers(network: Any, folder: Path) -> nn.Module:
    network.load_lora_adapter(folder, weight_name=WEIGHTS_FILE, prefix=PREFIX, adapter_name="default")
    return network


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (tiny_network, loaded_by_peft),
        (tiny_network, injected),
        (tiny_text_network, loaded_by_peft),
        (tiny_text_network, injected),
        (tiny_text_network, loaded_by_diffusers),
    ],
)
def test_others_compute_what_stacks_compute(
    make: Callable[[], nn.Module], read: Callable[[nn.Module, Path], nn.Module], tmp_path: Path
) -> None:
    network = make()
    states = [random_adapter(network, LORA, seed) for seed in range(2)]
    strides = [layer.stride for layer in lora_layers(network, TARGETS).values() if hasattr(layer, "stride")]
    assert (2, 2) in strides
    for number, (state, expected) in enumerate(zip(states, stacked(network, states), strict=True)):
        save_adapter(state, LORA, tmp_path / str(number))
        assert_same(plain(read(copy.deepcopy(network), tmp_path / str(number))), expected)
        assert (plain(network) - expected).abs().max() > 0.01


def test_hot_swap_puts_a_rebuilt_adapter_in_place(tmp_path: Path) -> None:
    network = tiny_text_network()
    states = [random_adapter(network, LORA, seed) for seed in range(2)]
    expected = stacked(network, states)
    for number, state in enumerate(states):
        save_adapter(state, LORA, tmp_path / str(number))
    live = loaded_by_diffusers(tiny_text_network(), tmp_path / "0")
    assert_same(plain(live), expected[0])
    live.load_lora_adapter(
        tmp_path / "1", weight_name=WEIGHTS_FILE, prefix=PREFIX, adapter_name="default", hotswap=True
    )
    assert_same(plain(live), expected[1])


def test_hot_swap_without_the_mixin(tmp_path: Path) -> None:
    network = tiny_network()
    states = [random_adapter(network, LORA, seed) for seed in range(2)]
    expected = stacked(network, states)
    for number, state in enumerate(states):
        save_adapter(state, LORA, tmp_path / str(number))
    live = injected(tiny_network(), tmp_path / "0")
    config = peft.LoraConfig.from_pretrained(tmp_path / "1")
    hotswap_adapter_from_state_dict(
        live, named(load_adapter(tmp_path / "1", LORA), "default"), "default", config
    )
    assert_same(plain(live), expected[1])


def test_files_are_the_same_bytes_and_come_back(tmp_path: Path) -> None:
    network = tiny_network()
    state = random_adapter(network, LORA, 0)
    save_adapter(state, LORA, tmp_path / "a")
    save_adapter(dict(reversed(state.items())), LORA, tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    back = load_adapter(tmp_path / "a", LORA)
    assert set(back) == set(state)
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array)


def test_reads_what_peft_writes(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=list(TARGETS), init_lora_weights=False)
    model = peft.get_peft_model(tiny_network(), config)
    model.save_pretrained(tmp_path)
    state = load_adapter(tmp_path, LORA)
    expected = random_adapter(tiny_network(), LORA, 0)
    assert {name: array.shape for name, array in state.items()} == {
        name: array.shape for name, array in expected.items()
    }
    assert_same(stacked(tiny_network(), [state])[0], plain(model))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    state = random_adapter(tiny_network(), LORA, 0)
    with pytest.raises(ValueError, match="factors of rank 4"):
        save_adapter(state, LoraConfig(rank=4), tmp_path)
    with pytest.raises(ValueError, match="got nothing"):
        save_adapter({}, LORA, tmp_path)
    with pytest.raises(ValueError, match="for each layer"):
        save_adapter({"weights": np.zeros((3, 3))}, LORA, tmp_path)
    with pytest.raises(ValueError, match="no LoRA adapter in peft's format"):
        load_adapter(tmp_path / "missing", LORA)
    save_adapter(state, LORA, tmp_path)
    with pytest.raises(ValueError, match=r"alpha 7\.0, got rank 3 and alpha 6\.0"):
        load_adapter(tmp_path, LoraConfig(rank=3, alpha=7.0))
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["target_modules"] == sorted(lora_layers(tiny_network(), TARGETS))
    (tmp_path / WEIGHTS_FILE).write_bytes((tmp_path / WEIGHTS_FILE).read_bytes()[:100])
    with pytest.raises(ValueError, match="no LoRA adapter in peft's format"):
        load_adapter(tmp_path, LORA)
