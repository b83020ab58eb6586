"""A tiny adapter ensemble that generates, with images deleted, and its oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from command_line import CONFIGS, TINY_OVERRIDES

from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.train import deleted_from, train
from gen_unlearn.config import load_config
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder

TINY_LORA = (
    *TINY_OVERRIDES,
    "model.adapters.count=12",
    "core.fraction=0.8",
    "model.adapters.lora.epochs=1",
    "model.router.encoder.width=8",
    "model.router.training.images=64",
    "evaluation.membership.images=12",
)
DELETED = 5


def train_tiny_ensemble(path: Path, overrides: Sequence[str] = ()) -> RunFolder:
    """Train a run within seconds."""
    return train(load_config(CONFIGS / "digits_lora.yaml", [*TINY_LORA, *overrides]), path)


@dataclass(frozen=True)
class DeletedRun:
    """A run without a few of its images, and its oracle; tests change neither.

    Attributes:
        run: the run, after the deletion.
        oracle: trained without the images.
        trained: the adapters as they were trained, number -> name -> bytes.
    """

    run: RunFolder
    oracle: RunFolder
    trained: dict[int, dict[str, bytes]]

    @classmethod
    def make(cls, root: Path, overrides: Sequence[str] = ()) -> DeletedRun:
        """Train the run, delete from it, and train the oracle."""
        run = train_tiny_ensemble(root / "run", overrides)
        trained = adapters_of(run)
        names = ids_to_hex(run.exemplar_folder().ids)
        chosen = names[:: len(names) // DELETED][:DELETED]
        forget(run, ForgetRequest(ids=tuple(chosen)).resolve(run).forget_set)
        config, (without, origin) = run.config, deleted_from([run.path])
        oracle = train(config, root / "oracle", without, origin)
        return cls(RunFolder.open(run.path), oracle, trained)


def adapters_of(run: RunFolder) -> dict[int, dict[str, bytes]]:
    """Return the bytes of all adapters that answer."""
    return {
        number: {name: array.tobytes() for name, array in state.items()}
        for number, state in run.adapter_folder().serving().items()
    }
