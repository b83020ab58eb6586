"""The constants of membership attacks on a denoiser."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttackConfig:
    """Constants of the attacks; the defaults are for 1000 timesteps.

    Attributes:
        loss_timesteps: timesteps at which `loss_score` measures the loss.
        loss_draws: noise draws per image at each of them.
        secmi_timestep: timestep to which `secmi_score` inverts, a multiple of the stride.
        secmi_stride: timesteps per step of the inversion.
        pia_timestep: timestep at which `pia_score` and `pian_score` ask for the noise again.
        seed: seed of the noise of `loss_score`.
        batch_size: images per batch; does not change the scores.

    Raises:
        ValueError: if a timestep is negative, there is none for the loss, a count is not positive, or
            `secmi_timestep` is no multiple of `secmi_stride`.
    """

    loss_timesteps: tuple[int, ...] = (100, 150, 200, 250)
    loss_draws: int = 2
    secmi_timestep: int = 100
    secmi_stride: int = 10
    pia_timestep: int = 200
    seed: int = 0
    batch_size: int = 250

    def __post_init__(self) -> None:
        if not self.loss_timesteps or min(self.loss_timesteps) < 0 or self.pia_timestep < 0:
            raise ValueError(
                f"expected timesteps of at least 0, and at least one for the loss, got {self.loss_timesteps} "
                f"and {self.pia_timestep}"
            )
        for name in ("loss_draws", "secmi_timestep", "secmi_stride", "batch_size"):
            if self.__dict__[name] < 1:
                raise ValueError(f"{name} must be at least 1, got {self.__dict__[name]}")
        if self.secmi_timestep % self.secmi_stride:
            raise ValueError(
                f"secmi_timestep must be a multiple of secmi_stride, got {self.secmi_timestep} and "
                f"{self.secmi_stride}"
            )
