"""Importance weights of SISS (arXiv 2503.01034): one noisy image that may come from either of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_GREATEST_EXPONENT = 80.0
"""``exp(80)`` is finite in float32."""


class Mixed(NamedTuple):
    """Noisy images `m`, each made from `x` or from `a`.

    Attributes:
        noisy: ``m = gamma z + sigma eps``, like the images.
        noise_first: ``(m - gamma x) / sigma``, like the images.
        noise_second: ``(m - gamma a) / sigma``, like the images.
        gap: ``d_a - d_x`` with ``d_z = |m - gamma z|^2 / (2 sigma^2)``, summed over pixels, ``(batch,)``:
            the logarithm of the ratio of the densities of `m` under `x` and under `a`.
    """

    noisy: Tensor
    noise_first: Tensor
    noise_second: Tensor
    gap: Tensor


def mixed(
    first: Tensor, second: Tensor, noise: Tensor, signal: Tensor, deviation: Tensor, chosen: Tensor
) -> Mixed:
    """Add one noise to the first or the second image, with distances to both in closed form.

    With ``shift = (gamma / sigma) (x - a)``, the gap is ``<eps, shift> + |shift|^2 / 2`` if `m` comes from
    `x` and ``<eps, shift> - |shift|^2 / 2`` if it comes from `a`: no two large numbers are subtracted.

    Args:
        first: `x`, ``(batch, channels, height, width)``.
        second: `a`, like `first`.
        noise: `eps`, like `first`.
        signal: `gamma`, ``(batch,)``.
        deviation: `sigma`, ``(batch,)``, above 0.
        chosen: whether `m` comes from `a`, bool ``(batch,)``.
    """
    gamma, sigma, second_is_source = (part[:, None, None, None] for part in (signal, deviation, chosen))
    shift = gamma / sigma * (first - second)
    half = shift.square().sum(dim=(1, 2, 3)) / 2
    return Mixed(
        gamma * torch.where(second_is_source, second, first) + sigma * noise,
        torch.where(second_is_source, noise - shift, noise),
        torch.where(second_is_source, noise, noise + shift),
        (noise * shift).sum(dim=(1, 2, 3)) + torch.where(chosen, -half, half),
    )


def importance_weights(gap: Tensor, mixture: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``q_x / q`` and ``q_a / q`` with ``q = (1 - mixture) q_x + mixture q_a``, each ``(batch,)``.

    ``(1 - mixture) w_x + mixture w_a = 1``. With a mixture of 0 or 1, one weight is 1 and the other is not
    bounded; its logarithm is cut at 80.

    Args:
        gap: see `Mixed`, ``(batch,)``; it may be infinite.
        mixture: probability of the second image, from 0 to 1, ``(batch,)``.
    """
    first_only, second_only = mixture <= 0, mixture >= 1
    inside = torch.where(first_only | second_only, 0.5, mixture)
    centred = gap - torch.logit(inside)
    of_first, of_second = torch.sigmoid(centred) / (1 - inside), torch.sigmoid(-centred) / inside
    one = torch.ones_like(gap)
    of_first = torch.where(second_only, gap.clamp(max=_GREATEST_EXPONENT).exp(), of_first)
    of_second = torch.where(first_only, (-gap).clamp(max=_GREATEST_EXPONENT).exp(), of_second)
    return torch.where(first_only, one, of_first), torch.where(second_only, one, of_second)


def weight_entropy(gap: Tensor, mixture: Tensor) -> Tensor:
    """Return how unsure it is which image a noisy one comes from: from 0 to ``log 2`` nats, ``(batch,)``.

    Where it is 0 the weights are 0 and 1 over the mixture: nothing is shared between both parts of the loss.
    """
    of_first, of_second = importance_weights(gap, mixture)
    inside = (mixture > 0) & (mixture < 1)
    entropy = torch.special.entr((1 - mixture) * of_first) + torch.special.entr(mixture * of_second)
    return torch.where(inside, entropy, 0.0)


def interpolated(knots: Sequence[float], timesteps: Tensor, num_timesteps: int) -> Tensor:
    """Return a piecewise linear function of the timestep, float32 ``(batch,)``.

    Args:
        knots: its values at equal distances, the first at timestep 0 and the last at the last one.
        timesteps: int64 ``(batch,)``.
        num_timesteps: length of the schedule.
    """
    values = torch.tensor(knots, dtype=torch.float32, device=timesteps.device)
    place = timesteps.float() / max(num_timesteps - 1, 1) * (len(knots) - 1)
    left = place.floor().long().clamp(max=max(len(knots) - 2, 0))
    right = (left + 1).clamp(max=len(knots) - 1)
    return torch.lerp(values[left], values[right], place - left)
