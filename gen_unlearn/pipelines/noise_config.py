"""The settings of the noise schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


@dataclass(frozen=True)
class NoiseConfig:
    """The noise schedule of training; names and meanings are those of diffusers' `DDPMScheduler`.

    Attributes:
        num_train_timesteps: number of integer timesteps.
        beta_schedule: ``"linear"``, ``"scaled_linear"`` or ``"squaredcos_cap_v2"``.
        beta_start: first variance of the linear schedules.
        beta_end: last variance of the linear schedules.
        prediction_type: ``"epsilon"`` or ``"v_prediction"``.
    """

    num_train_timesteps: int = 1000
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "squaredcos_cap_v2"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"

    def build(self) -> DDPMScheduler:
        """Build the schedule."""
        from diffusers import DDPMScheduler

        return DDPMScheduler(
            num_train_timesteps=self.num_train_timesteps,
            beta_schedule=self.beta_schedule,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            prediction_type=self.prediction_type,
        )
