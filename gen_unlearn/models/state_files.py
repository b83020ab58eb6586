"""Weights of networks from local files: read as tensors only, and loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path

import accelerate.utils
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_state(path: Path, source: str) -> MutableMapping[str, Tensor]:
    """Read a state dict from a file: tensors only, no code or object in it is run.

    Args:
        path: a .safetensors file, or one that `torch.save` wrote.
        source: how to get such a file, for the message if there is none.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"expected weights in {path}, found no such file; {source}: nothing is downloaded")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = accelerate.utils.load(path, map_location="cpu")  # tensors only, no objects
    except (SafetensorError, RuntimeError, EOFError, torch.serialization.pickle.UnpicklingError) as error:
        raise ValueError(
            f"expected a state dict of tensors in {path}, got a file that cannot be read as one "
            f"({type(error).__name__}); get it again, or save the network's state_dict() alone"
        ) from error
    if not isinstance(state, MutableMapping) or not all(isinstance(x, Tensor) for x in state.values()):
        raise ValueError(
            f"expected a state dict of tensors in {path}, got something else around it; "
            "save the network's state_dict() alone"
        )
    return state


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict into a network, all of it and nothing else.

    Args:
        network: after an error its weights are not to be used.
        state: tensors by name.
        path: where they come from, for the message.

    Raises:
        ValueError: tensors are missing, left over or of another shape; the message names the first ones.
    """
    own = network.state_dict()
    found = {
        "of another shape": [k for k, value in state.items() if k in own and own[k].shape != value.shape]
    }
    if not found["of another shape"]:
        missing, unexpected = network.load_state_dict(state, strict=False)
        found = {"missing": missing, "unexpected": unexpected}
    problems = [
        f"{len(keys)} tensors {what} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)})"
        for what, keys in found.items()
        if keys
    ]
    if problems:
        raise ValueError(
            f"expected the weights of this encoder in {path}, got {' and '.join(problems)}; "
            "name the weights that go with the encoder's settings"
        )
