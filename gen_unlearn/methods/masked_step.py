"""Steps that move only some weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class MaskedStep:
    """Put every weight outside of a mask back after an optimiser step.

    To mask the gradient would not do: weight decay and momentum move weights without one.

    Args:
        model: as it is now; the weights that are put back are these.
        mask: bool tensors by the names of parameters; true where a weight may move. A parameter without an
            entry may not move.
        freeze_buffers: put buffers back too, such as running statistics.

    Raises:
        ValueError: a mask of another shape or for a parameter that is not there.
    """

    def __init__(self, model: nn.Module, mask: Mapping[str, Tensor], freeze_buffers: bool = False) -> None:
        parameters = dict(model.named_parameters())
        unknown = [name for name in mask if name not in parameters]
        if unknown:
            raise ValueError(f"expected masks of parameters, got one for {unknown[0]}, which the model lacks")
        for name, own in mask.items():
            if own.shape != parameters[name].shape:
                raise ValueError(
                    f"expected a mask of shape {tuple(parameters[name].shape)} for {name}, "
                    f"got {tuple(own.shape)}"
                )
        self._held = [
            (
                parameter,
                mask[name].to(parameter.device)
                if name in mask
                else torch.zeros_like(parameter, dtype=torch.bool),
                parameter.detach().clone(),
            )
            for name, parameter in parameters.items()
        ]
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if freeze_buffers]

    @torch.no_grad()
    def __call__(self) -> None:
        """Put back what may not move; to call after every step of the optimiser."""
        for parameter, mask, anchor in self._held:
            torch.where(mask, parameter, anchor, out=parameter)
        for buffer, kept in self._buffers:
            buffer.copy_(kept)
