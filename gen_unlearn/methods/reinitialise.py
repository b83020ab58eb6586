"""Fresh weights for a model or for parts of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from gen_unlearn.repro import derive_seed


def reinit(model: nn.Module, names: Sequence[str], seed: int) -> int:
    """Draw the weights of some modules anew, in place, and restore their buffers.

    Every module below a name is reset, at any depth, by its own ``reset_parameters``; a module that contains
    others is reset after them. The draws are made on the CPU and depend on the seed and on the name of the
    module alone. The global random state is left as it was.

    Args:
        model: what to change.
        names: names of modules as ``named_modules`` gives them; ``""`` is the whole model.
        seed: of the draws.

    Returns:
        Number of weights that were drawn anew; a tensor that two modules share counts once.

    Raises:
        ValueError: an unknown name; no name; a module with weights or saved buffers of its own that it cannot
            reset. Nothing was changed then.
    """
    modules = dict(model.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown or not names:
        given = repr(unknown[0]) if unknown else "none"
        raise ValueError(
            f"expected names of modules of {type(model).__name__}, got {given}; "
            f"choose among {', '.join(name for name in modules if name)}"
        )
    chosen = {
        name: modules[name]
        for name in modules
        if any(top in ("", name) or name.startswith(f"{top}.") for top in names)
    }
    for name, module in chosen.items():
        if _reset_of(module) is None and _owns_state(module):
            raise ValueError(
                f"expected {name or 'the model'} ({type(module).__name__}) to have reset_parameters for its "
                "own weights, it has none; define it, or leave this module out"
            )
    with torch.random.fork_rng(devices=[]):
        for name in sorted(chosen, key=lambda name: (-_depth(name), name)):
            torch.default_generator.manual_seed(derive_seed(seed, "reinitialise", name))
            _reset(chosen[name])
    drawn = {id(parameter): parameter for module in chosen.values() for parameter in module.parameters()}
    return sum(parameter.numel() for parameter in drawn.values())


def _depth(name: str) -> int:
    """Return how many modules contain the one of this name."""
    return name.count(".") + 1 if name else 0


def _reset_of(module: nn.Module) -> Callable[[], None] | None:
    """Return what resets a module; attention keeps it private."""
    found = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    return found if callable(found) else None


def _owns_state(module: nn.Module) -> bool:
    """Tell whether a module has weights or saved buffers that no other module holds."""
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return any(name in module.state_dict() for name in own)


@torch.no_grad()
def _reset(module: nn.Module) -> None:
    """Reset a module through a copy on the CPU, so that a device does not change what is drawn."""
    if _reset_of(module) is None:
        return
    fresh = copy.deepcopy(module).cpu()
    reset = _reset_of(fresh)
    assert reset is not None
    reset()
    module.load_state_dict(fresh.state_dict())
