"""LoRA adapters in peft's format, for peft, diffusers and every program that reads their files.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, the same bytes for the same adapter.
`peft.PeftModel.from_pretrained(unet, folder)` loads it, and so does, where the network's class has it,
``unet.load_lora_adapter(folder, weight_name="adapter_model.safetensors", prefix="base_model.model")``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from gen_unlearn.adapters.family import AdapterState
from gen_unlearn.adapters.lora_config import LoraConfig
from gen_unlearn.atomic import write_undated
from gen_unlearn.models.stacked_lora import DOWN, UP

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_DIFFUSERS_SETTINGS = "lora_adapter_metadata"


def save_adapter(state: AdapterState, config: LoraConfig, folder: Path) -> None:
    """Write an adapter to a folder, which is made if missing.

    Args:
        state: the adapter, float32 arrays by peft's names without a prefix.
        config: how it looks: its rank and alpha.
        folder: where to.

    Raises:
        ValueError: the adapter is no LoRA adapter of that rank.
    """
    layers = _layers(state, config.rank)
    settings = {"r": config.rank, "lora_alpha": config.alpha, "target_modules": layers}
    described: dict[str, Any] = {
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "peft_type": "LORA",
        "task_type": None,
        **settings,
    }
    arrays = {_PREFIX + name: np.ascontiguousarray(array) for name, array in sorted(state.items())}
    for_diffusers = json.dumps({_PREFIX + name: value for name, value in settings.items()}, sort_keys=True)
    folder.mkdir(parents=True, exist_ok=True)
    # One entry only: several would come in another order every time.
    write_undated(folder / WEIGHTS_FILE, save(arrays, {_DIFFUSERS_SETTINGS: for_diffusers}))
    write_undated(folder / CONFIG_FILE, f"{json.dumps(described, indent=2, sort_keys=True)}\n".encode())


def load_adapter(folder: Path, config: LoraConfig) -> AdapterState:
    """Read an adapter that `save_adapter` or peft has written.

    Args:
        folder: where it lies.
        config: rank and alpha that it is expected to have.

    Returns:
        The adapter, float32 arrays by peft's names without a prefix.

    Raises:
        ValueError: a file is missing or damaged, or the adapter has another rank or alpha.
    """
    try:
        described = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        arrays = load((folder / WEIGHTS_FILE).read_bytes())
        found = described["r"], float(described["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no LoRA adapter in peft's format: {error}") from error
    if found != (config.rank, config.alpha):
        raise ValueError(
            f"expected an adapter of rank {config.rank} and alpha {config.alpha}, got rank {found[0]} and "
            f"alpha {found[1]} in {folder}; save it again from the ensemble that it belongs to"
        )
    state = {name.removeprefix(_PREFIX): array for name, array in arrays.items()}
    _layers(state, config.rank)
    return state


def _layers(state: AdapterState, rank: int) -> list[str]:
    """Return the names of the layers of an adapter, sorted, after a check of its names and ranks."""
    layers = sorted({name.removesuffix(DOWN).removesuffix(UP) for name in state})
    wanted = {layer + end for layer in layers for end in (DOWN, UP)}
    if not state or set(state) != wanted:
        raise ValueError(
            f"expected LAYER{DOWN} and LAYER{UP} for each layer, got {', '.join(sorted(state)) or 'nothing'}"
        )
    for layer in layers:
        ranks = state[layer + DOWN].shape[0], state[layer + UP].shape[1]
        if ranks != (rank, rank):
            raise ValueError(f"expected factors of rank {rank}, got {ranks} in {layer}; set the rank to it")
    return layers
