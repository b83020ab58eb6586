"""Tiny runs with deletions, to judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command_line import CONFIGS, TINY_OVERRIDES

from gen_unlearn.commands.evaluate import evaluate
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.oracles import find_oracles
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.train import train
from gen_unlearn.config import load_config
from gen_unlearn.runs import RunFolder

QUICK_ATTACK = (
    "evaluation.membership.attack.loss_timesteps=[100, 200]",
    "evaluation.membership.attack.loss_draws=1",
    "evaluation.membership.attack.secmi_stride=50",
)
FEW_SCORED = (
    "evaluation.membership.images=20",
    "evaluation.membership.exemplars_per_class=4",
    *QUICK_ATTACK,
)


def train_tiny(path: Path, overrides: Sequence[str] = (), base: str = "digits_spm.yaml") -> RunFolder:
    """Train a run within a second."""
    return train(load_config(CONFIGS / base, [*TINY_OVERRIDES, *FEW_SCORED, *overrides]), path)


def delete(run: RunFolder, **asked: Any) -> RunFolder:
    """Delete as the command does, keeping what compares before and after; return the run as it is then."""
    forget(run, ForgetRequest(**asked).resolve(run).forget_set, keep_comparison=True)
    return RunFolder.open(run.path)


@dataclass(frozen=True)
class Judged:
    """A run without its class 3 that was evaluated before, and three oracles; tests change neither."""

    run: RunFolder
    oracles: list[RunFolder]

    @classmethod
    def make(cls, root: Path) -> Judged:
        """Train the run and its oracles."""
        run = train_tiny(root / "run")
        evaluate(run)
        run = delete(run, classes=("3",))
        return cls(run, find_oracles(run, root / "oracles", range(3)))
