"""What a metric of a benchmark is: its direction, its unit, and how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Tier: TypeAlias = Literal["A", "B", "C", "D"]
Role: TypeAlias = Literal["level", "distance", "score", "cost"]
Direction: TypeAlias = Literal["retrain", "lower", "higher"]

TIERS: dict[Tier, str] = {
    "A": "attacks and distances by sample over pools of models: the strongest evidence",
    "B": "needs four to eight retrained models",
    "C": "necessary, not sufficient: paired accuracies, and population attacks against retraining's",
    "D": "for comparison with published tables only",
}
"""Trust tier -> what it says."""

_DIRECTIONS: dict[Role, Direction] = {
    "level": "retrain",
    "distance": "lower",
    "score": "higher",
    "cost": "lower",
}


@dataclass(frozen=True)
class MetricDefinition:
    """What one metric is.

    Attributes:
        id: name in rows and tables; ``*`` stands for any number.
        definition: what is measured, in a sentence.
        unit: ``%``, ``points``, ``nats``, ``s`` or nothing.
        role: a `level` is to equal the retrained model's; a `distance` to it is to be small; a `score` is to
            be large; a `cost` is paid.
        tier: how far to trust it, see `TIERS`.
        set: which samples it is measured on.
        needs: what has to be at hand.
        version: raised whenever the values change.
    """

    id: str
    definition: str
    unit: str
    role: Role
    tier: Tier
    set: str
    needs: tuple[str, ...] = ("logits",)
    version: int = 1

    @property
    def direction(self) -> Direction:
        """Where the best value lies: at the retrained model's, low or high."""
        return _DIRECTIONS[self.role]

    @property
    def needs_floor(self) -> bool:
        """Say whether a value means nothing without that of a second retrained model."""
        return self.role in ("distance", "score")
