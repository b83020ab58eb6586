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
        self._model = model
        self._anchor = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._mask = {
            name: mask[name].to(parameter.device)
            if name in mask
            else torch.zeros_like(parameter, dtype=torch.bool)
            for name, parameter in parameters.items()
        }
        self._buffers = (
            {name: buffer.clone() for name, buffer in model.named_buffers()} if freeze_buffers else {}
        )

    @torch.no_grad()
    def __call__(self) -> None:
        """Put back what may not move; to call after every step of the optimiser."""
        for name, parameter in self._model.named_parameters():
            parameter.copy_(torch.where(self._mask[name], parameter, self._anchor[name]))
        for name, buffer in self._model.named_buffers():
            if name in self._buffers:
                buffer.copy_(self._buffers[name])
