"""Several networks of one shape as stacked weights, which are trained at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap


class StackedNetworks:
    """Stack the weights of networks of one shape; the networks themselves stay as they are.

    The gradient of the sum of all losses is that of each loss in its own weights, since no two share any.

    Args:
        networks: at least one, of equal architecture, without layers that mix the images of a batch.

    Attributes:
        parameters: one leaf tensor ``(networks, *shape)`` per parameter.
        device: where they are.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._networks = list(networks)
        self._names = [name for name, _ in networks[0].named_parameters()]
        members = [dict(network.named_parameters()) for network in networks]
        self.parameters = [
            torch.stack([member[name].detach() for member in members]).requires_grad_()
            for name in self._names
        ]
        self.device = self.parameters[0].device

    def logits(self, images: Tensor) -> Tensor:
        """Map images ``(networks, batch, channels, height, width)`` to ``(networks, batch, classes)``."""
        first = self._networks[0]

        def one(parameters: tuple[Tensor, ...], images: Tensor) -> Tensor:
            logits: Tensor = functional_call(
                first, dict(zip(self._names, parameters, strict=True)), (images,)
            )
            return logits

        stacked: Tensor = vmap(one)(tuple(self.parameters), images)
        return stacked

    def cross_entropy(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of each network over its batch, ``(networks,)``.

        Args:
            images: ``(networks, batch, channels, height, width)`` in [-1, 1].
            labels: int64 ``(networks, batch)``.
        """
        logits = self.logits(images)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return losses.unflatten(0, labels.shape).mean(dim=1)

    def write_back(self) -> None:
        """Copy the stacked weights into the networks."""
        with torch.no_grad():
            for place, network in enumerate(self._networks):
                for parameter, stacked in zip(network.parameters(), self.parameters, strict=True):
                    parameter.copy_(stacked[place])
