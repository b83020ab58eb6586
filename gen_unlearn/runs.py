"""The run folder: where programs meet in files.

What lies where is said in `gen_unlearn.run_paths`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from gen_unlearn.atomic import flush_folder, flush_tree, write_text
from gen_unlearn.changes import RunBusyError
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.core import CoreSplit, split_core
from gen_unlearn.data import (
    DataConfig,
    IndexedImages,
    Split,
    load_images,
    load_split,
    split_by_ids,
    with_classes,
)
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.ledger import Ledger, LedgerEntry
from gen_unlearn.manifest import RunManifest, TrainingRecord
from gen_unlearn.pipelines.loading import load_generator
from gen_unlearn.pipelines.sampling import GeneratorPipeline
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import ids_from_hex, ids_to_hex
from gen_unlearn.run_paths import RunPaths
from gen_unlearn.sealing import RunKey, Tombstones
from gen_unlearn.shards import sha256

_WRITTEN_FIRST = {
    f"{prefix}{name}{suffix}"
    for name in ("ledger.key", "recipe.yaml", "without.txt", "manifest.json")
    for prefix, suffix in (("", ""), (".", ".unfinished"))
}
_CHANGEABLE = ("data.source", "data.test_source", "sampling.", "evaluation.")


@dataclass(frozen=True)
class RunFolder(RunPaths):
    """One run on disk; see the module's docstring for what lies where.

    Attributes:
        overrides: recipe values to use instead of those on disk, such as ``sampling.seed=1``.
        notice: what `open` repaired, for people.
    """

    overrides: tuple[str, ...] = ()
    notice: str | None = field(default=None, compare=False)

    @classmethod
    def create(
        cls, path: Path, config: RunConfig, manifest: RunManifest, without: Tombstones | None = None
    ) -> RunFolder:
        """Start a run in an empty folder, or return the run that was started there from the same recipe.

        Args:
            path: the folder.
            config: the recipe.
            manifest: what the run is made from; the digest of its data is sealed with the run's key.
            without: what an oracle is trained without; the run takes over its key.
        """
        run = cls(path)
        if run.manifest_path.exists():
            started = run.manifest
            sealed = manifest.sealed(run.key)
            made_from = (started.recipe_digest, started.data_digest, started.without)
            if made_from != (sealed.recipe_digest, sealed.data_digest, sealed.without):
                raise ValueError(
                    f"{path} holds another run (recipe, data or forget set differ); choose another --out"
                )
            return run
        if path.exists() and (not path.is_dir() or not cls._begun(path)):
            raise ValueError(f"{path} is not empty and holds no run; choose another --out")
        path.mkdir(parents=True, exist_ok=True)
        key = RunKey.fresh() if without is None else without.key
        key.save(run.key_path)
        write_text(run.recipe_path, config.to_yaml())
        if without is not None:
            write_text(run.without_path, without.to_text())
        write_text(run.manifest_path, manifest.sealed(key).to_json())
        return cls(path)

    @staticmethod
    def _begun(path: Path) -> bool:
        """Whether a folder holds nothing but what `create` writes first, perhaps cut short by a crash."""
        return {entry.name for entry in path.iterdir()} <= _WRITTEN_FIRST

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open a trained run, finishing or undoing a change that a crash cut short."""
        run = cls(path)
        if not run.manifest_path.exists():
            raise ValueError(f"{path} holds no run: {run.manifest_path.name} is missing")
        if run.manifest.training is None:
            raise ValueError(
                f"training of {path} is not complete; continue it with: gen-unlearn train {path}"
            )
        if run.change.pending():
            try:
                with run.change.locked(wait=0):
                    return replace(run, notice=run.change.recover())
            except RunBusyError:  # Another process is at it; until it is done, the state is the one before.
                return run
        return run

    @cached_property
    def config(self) -> RunConfig:
        """The recipe, with the overrides of this use."""
        return load_config(self.recipe_path, self.overrides)

    def with_overrides(self, overrides: Sequence[str]) -> RunFolder:
        """Return the run with other values for how it is used; how it was trained is fixed."""
        for override in overrides:
            if not override.startswith(_CHANGEABLE):
                raise ValueError(
                    f"{override.partition('=')[0]} is fixed once a run is trained; "
                    f"what can be set: {', '.join(_CHANGEABLE)}"
                )
        return replace(self, overrides=(*self.overrides, *overrides))

    @cached_property
    def key(self) -> RunKey:
        """The secret key."""
        return RunKey.from_file(self.key_path)

    @property
    def ledger(self) -> Ledger:
        """The ledger as it is on disk now."""
        return Ledger.read(self.ledger_path, self.key)

    @property
    def manifest(self) -> RunManifest:
        """The manifest as it is on disk now."""
        return RunManifest.from_file(self.manifest_path)

    @property
    def is_semi_parametric(self) -> bool:
        """Whether images can be deleted from this run's model."""
        return self.config.model.kind == "semi-parametric"

    def complete_training(self, pipeline: GeneratorPipeline, record: TrainingRecord) -> None:
        """Save the trained pipeline, start the ledger, and note in the manifest that training is complete."""
        unfinished = self.path / "model.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(pipeline, SemiParametricDDPMPipeline):
            pipeline.save_pretrained(unfinished, include_exemplars=True)
        else:
            pipeline.save_pretrained(unfinished)
        flush_tree(unfinished)
        shutil.rmtree(self.model_path, ignore_errors=True)
        unfinished.rename(self.model_path)
        flush_folder(self.path)
        manifest = replace(self.manifest, training=record).to_json()
        files = self.unchanging_files() | {self.manifest_path.name: sha256(manifest.encode())}
        if self.is_semi_parametric:
            exemplars = self.exemplar_folder()
            Ledger.start(self.ledger_path, self.key, exemplars.digest, len(exemplars), files)
        else:
            Ledger.start(self.ledger_path, self.key, "", 0, files)
        write_text(self.manifest_path, manifest)

    def unchanging_files(self) -> dict[str, str]:
        """Return the SHA-256, by path in the run, of every file of the state that no deletion changes."""
        state = [self.recipe_path, self.manifest_path, self.held_out_path, self.core_path, self.without_path]
        model = (path for path in self.model_path.rglob("*") if self.exemplars_path not in path.parents)
        files = [path for path in (*state, *model) if path.is_file()]
        return {path.relative_to(self.path).as_posix(): sha256(path.read_bytes()) for path in sorted(files)}

    def load_pipeline(self) -> GeneratorPipeline:
        """Load the model as it is now."""
        return load_generator(
            self.model_path, self.config.model.kind, self.config.sampling, self.config.noise
        )

    def exemplar_folder(self) -> ExemplarFolder:
        """Open the exemplars on disk: enough to delete from them, and to ask what is held.

        Raises:
            ValueError: the model has no exemplars.
        """
        if not self.is_semi_parametric:
            raise ValueError(
                f"{self.path} is a {self.config.model.kind} model: images are in its weights and cannot be "
                f"deleted; retrain it with: gen-unlearn train --config RECIPE --without RUN"
            )
        return ExemplarFolder.open(self.exemplars_path)

    def load_exemplars(self) -> ExemplarStore:
        """Load all exemplars."""
        return ExemplarStore.from_pretrained(self.exemplar_folder().path)

    def keep_split(self, test: IndexedImages, parts: CoreSplit) -> None:
        """Remember which images were held out and which are core: the split of another source would move."""
        if not self.held_out_path.exists():
            write_text(self.held_out_path, "".join(f"{name}\n" for name in ids_to_hex(test.ids)))
        if self.config.core.mode == "public" and not self.core_path.exists():
            write_text(self.core_path, "".join(f"{name}\n" for name in ids_to_hex(parts.core.ids)))

    def load_split(self) -> Split:
        """Load the run's data, held out and classes as when it was trained, whatever the source holds now."""
        return self.split(self.config.data)

    def split(self, data: DataConfig) -> Split:
        """Load data, held out and classes as in this run."""
        if data.test_source is None and self.held_out_path.exists():
            split = split_by_ids(load_images(data), self.held_out_ids)
        else:
            split = load_split(data)
        names = self.manifest.class_names
        return Split(with_classes(split.train, names), with_classes(split.test, names))

    def split_core(self, train: IndexedImages) -> CoreSplit:
        """Divide training images into the run's core and the deletable ones."""
        return split_core(train, self.config.core, self.core_ids if self.core_path.exists() else None)

    @property
    def held_out_ids(self) -> np.ndarray:
        """The ids that are held out for testing, uint8 ``(n, 16)``."""
        return _read_ids(self.held_out_path)

    @property
    def core_ids(self) -> np.ndarray:
        """The ids of a public core, uint8 ``(n, 16)``; none of a joint one, where all are deletable."""
        return _read_ids(self.core_path)

    def receipts(self) -> list[DeletionReceipt]:
        """Return all receipts, oldest first; they are sealed."""
        names = (entry.receipt for entry in self.ledger.entries if entry.receipt is not None)
        return [DeletionReceipt.from_file(self.receipts_path / name) for name in names]

    def without(self) -> Tombstones | None:
        """Return what an oracle is trained without, or `None`."""
        return Tombstones.from_file(self.without_path, self.key) if self.without_path.exists() else None

    def forgotten(self) -> Tombstones:
        """Return the tombstones of everything that was deleted from this run."""
        return self.ledger.tombstones

    def state_digest(self) -> str:
        """Identify what generates images now: the weights and, if there are any, the exemplars."""
        return self._state_digest(self.ledger.entries[-1])

    def undeleted_state_digest(self) -> str:
        """Identify what generated images before anything was deleted, images that were added included."""
        entries = self.ledger.entries
        first = next((entry.sequence for entry in entries if entry.kind == "deleted"), len(entries))
        return self._state_digest(entries[first - 1])

    def _state_digest(self, entry: LedgerEntry) -> str:
        training = self.manifest.training
        weights = "" if training is None else training.weights_digest[:16]
        return f"{weights}-{entry.state[:16]}" if self.is_semi_parametric else weights

    def require_own_state(self, exemplars: ExemplarFolder, ledger: Ledger) -> None:
        """Check that recipe, lists and exemplars are those of the ledger, before a change builds on them.

        Raises:
            ValueError: one of them was edited, or the ledger was cut back.
        """
        expected = ledger.entries[0].files or {}
        paths = [self.recipe_path, self.manifest_path, self.held_out_path, self.core_path, self.without_path]
        for path in paths:
            if expected.get(path.name) != (sha256(path.read_bytes()) if path.exists() else None):
                raise ValueError(f"{path} was changed since the training; nothing was changed; put it back")
        if not ledger.entries[-1].describes(exemplars.digest, self.key):
            raise ValueError(
                f"the exemplars of {self.path} are not in the state that the ledger's last entry describes; "
                f"nothing was changed; see: gen-unlearn verify {self.path}"
            )


def _read_ids(path: Path) -> np.ndarray:
    """Read one hexadecimal id per line; a missing file holds none."""
    return ids_from_hex(path.read_text(encoding="utf-8").split() if path.exists() else [])
