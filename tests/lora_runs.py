"""Adapter ensembles that generate, tiny enough to be trained in seconds; one of them with its oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from command_line import CONFIGS
from command_line import TINY as TINY_GENERATOR

from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.train import deleted_from, train
from gen_unlearn.config import load_config
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder

RECIPE = CONFIGS / "digits_lora.yaml"
TINY = TINY_GENERATOR | {
    "core.fraction": "0.92",
    "model.block_out_channels": "[8]",
    "model.down_block_types": "[DownBlock2D]",
    "model.up_block_types": "[UpBlock2D]",
    "model.router.encoder.width": "4",
    "model.router.encoder.depth": "0",
    "model.router.training.images": "64",
    "model.router.training.batch_size": "32",
    "model.adapters.count": "12",
    "model.adapters.lora.rank": "2",
    "model.adapters.lora.targets": "[to_q, conv1, time_emb_proj]",
    "model.adapters.lora.epochs": "2",
    "model.adapters.lora.batch_size": "4",
    "model.adapters.lora.learning_rate": "0.03",
    "model.adapters.lora.stack": "2",
    "training.images": "48",
    "evaluation.images_per_class": "2",
    "evaluation.membership.images": "6",
}
SEMI_PARAMETRIC = ("model.backbone=semi-parametric", "model.adapters.lora.stack=1")
DELETED = 5


def tiny_overrides(*overrides: str) -> list[str]:
    """Return the settings of a tiny ensemble, and others that go before them."""
    return [*(f"{key}={value}" for key, value in TINY.items()), *overrides]


def tiny_ensemble(*overrides: str) -> list[object]:
    """Return the options of a tiny ensemble for the command line."""
    return ["--config", RECIPE, *(word for value in tiny_overrides(*overrides) for word in ("--set", value))]


def train_tiny_ensemble(path: Path, overrides: Sequence[str] = ()) -> RunFolder:
    """Train a run within seconds."""
    return train(load_config(RECIPE, tiny_overrides("model.adapters.lora.rank=4", *overrides)), path)


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
