"""The run folder: where programs meet in files.

What lies in it::

    recipe.yaml     the resolved recipe
    manifest.json   digests of recipe and data, versions, what training cost
    held_out.txt    the ids that are held out for testing
    without.txt     of an oracle: the ids that it is trained without
    model/          the pipeline in diffusers layout, exemplars included
    checkpoints/    resume points, while training is not complete
    receipts/       one JSON file for each deletion
    samples/        generated images, by the digest of what generated them
    metrics/        the judge and the scorecard
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from filelock import FileLock

from gen_unlearn.atomic import flush_folder, flush_tree, write_text
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.data import IndexedImages, Split, load_images, load_split, split_by_ids, with_classes
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.manifest import RunManifest, TrainingRecord
from gen_unlearn.pipelines.loading import load_generator
from gen_unlearn.pipelines.sampling import GeneratorPipeline
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import ids_from_hex, ids_to_hex

_WRITTEN_FIRST = {
    f"{prefix}{name}{suffix}"
    for name in ("recipe.yaml", "without.txt", "manifest.json")
    for prefix, suffix in (("", ""), (".", ".unfinished"))
}
_CHANGEABLE = ("data.source", "data.test_source", "sampling.", "evaluation.")


@dataclass(frozen=True)
class RunFolder:
    """One run on disk; see the module's docstring for what lies where.

    Attributes:
        path: the folder.
        overrides: recipe values to use instead of those on disk, such as ``sampling.seed=1``.
    """

    path: Path
    overrides: tuple[str, ...] = ()

    @classmethod
    def create(
        cls, path: Path, config: RunConfig, manifest: RunManifest, without: ForgetSet | None = None
    ) -> RunFolder:
        """Start a run in an empty folder, or return the run that was started there from the same recipe."""
        run = cls(path)
        if run.manifest_path.exists():
            started = run.manifest
            made_from = (started.recipe_digest, started.data_digest, started.without)
            if made_from != (manifest.recipe_digest, manifest.data_digest, manifest.without):
                raise ValueError(
                    f"{path} holds another run (recipe, data or forget set differ); choose another --out"
                )
            return run
        if path.exists() and (not path.is_dir() or not cls._begun(path)):
            raise ValueError(f"{path} is not empty and holds no run; choose another --out")
        path.mkdir(parents=True, exist_ok=True)
        write_text(run.recipe_path, config.to_yaml())
        if without is not None:
            write_text(run.without_path, "\n".join(ids_to_hex(without.ids)) + "\n")
        write_text(run.manifest_path, json.dumps(asdict(manifest), indent=2) + "\n")
        return run

    @staticmethod
    def _begun(path: Path) -> bool:
        """Whether a folder holds nothing but what `create` writes first, perhaps cut short by a crash."""
        return {entry.name for entry in path.iterdir()} <= _WRITTEN_FIRST

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open a trained run, finishing or undoing a deletion that a crash cut short."""
        run = cls(path)
        if not run.manifest_path.exists():
            raise ValueError(f"{path} holds no run: {run.manifest_path.name} is missing")
        if run.manifest.training is None:
            raise ValueError(
                f"training of {path} is not complete; continue it with: gen-unlearn train {path}"
            )
        if run._interrupted_deletion():
            with run._lock():
                run._recover()
        return run

    @property
    def recipe_path(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def manifest_path(self) -> Path:
        """The manifest."""
        return self.path / "manifest.json"

    @property
    def without_path(self) -> Path:
        """The ids that an oracle is trained without, as a list that `ForgetSet.from_file` reads."""
        return self.path / "without.txt"

    @property
    def held_out_path(self) -> Path:
        """The ids of the images that were held out for testing."""
        return self.path / "held_out.txt"

    @property
    def model_path(self) -> Path:
        """The pipeline."""
        return self.path / "model"

    @property
    def receipts_path(self) -> Path:
        """The receipts."""
        return self.path / "receipts"

    @property
    def samples_path(self) -> Path:
        """The generated images."""
        return self.path / "samples"

    @property
    def metrics_path(self) -> Path:
        """The judge and the scorecard."""
        return self.path / "metrics"

    @property
    def scorecard_path(self) -> Path:
        """The newest scorecard."""
        return self.metrics_path / "scorecard.json"

    @property
    def report_path(self) -> Path:
        """The report."""
        return self.path / "report.html"

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

    @property
    def manifest(self) -> RunManifest:
        """The manifest as it is on disk now."""
        return RunManifest.from_file(self.manifest_path)

    @property
    def is_semi_parametric(self) -> bool:
        """Whether images can be deleted from this run's model."""
        return self.config.model.kind == "semi-parametric"

    def complete_training(self, pipeline: GeneratorPipeline, record: TrainingRecord) -> None:
        """Save the trained pipeline, then note in the manifest that training is complete."""
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
        complete = replace(self.manifest, training=record)
        write_text(self.manifest_path, json.dumps(asdict(complete), indent=2) + "\n")

    def load_pipeline(self) -> GeneratorPipeline:
        """Load the model as it is now."""
        return load_generator(
            self.model_path, self.config.model.kind, self.config.sampling, self.config.noise
        )

    def load_exemplars(self) -> ExemplarStore:
        """Load the exemplar store alone: enough to delete from it."""
        if not self.is_semi_parametric:
            raise ValueError(
                f"{self.path} is a {self.config.model.kind} model: images are in its weights and cannot be "
                f"deleted; retrain it with: gen-unlearn train --config RECIPE --without FILE"
            )
        return ExemplarStore.from_pretrained(self.model_path / "exemplars", local_files_only=True)

    def keep_held_out(self, test: IndexedImages) -> None:
        """Remember which images were held out: the split of a source that loses images would move."""
        if not self.held_out_path.exists():
            write_text(self.held_out_path, "\n".join(ids_to_hex(test.ids)) + "\n")

    def load_split(self) -> Split:
        """Load the run's data, held out and classes as when it was trained, whatever the source holds now."""
        if self.config.data.test_source is None and self.held_out_path.exists():
            held_out = ids_from_hex(self.held_out_path.read_text(encoding="utf-8").split())
            split = split_by_ids(load_images(self.config.data), held_out)
        else:
            split = load_split(self.config.data)
        names = self.manifest.class_names
        return Split(with_classes(split.train, names), with_classes(split.test, names))

    def receipts(self) -> list[DeletionReceipt]:
        """Return all receipts, oldest first."""
        return [DeletionReceipt.from_file(path) for path in self._receipt_paths()]

    def _receipt_paths(self) -> list[Path]:
        return sorted(
            (path for path in self.receipts_path.glob("*.json") if path.stem.isdecimal()),
            key=lambda path: int(path.stem),
        )

    def _lock(self) -> FileLock:
        """Return the lock that whoever changes or repairs the exemplars holds; waits half a minute for it."""
        return FileLock(self.path / ".lock", timeout=30)

    def without(self) -> ForgetSet | None:
        """Return what an oracle is trained without, or `None`."""
        if not self.without_path.exists():
            return None
        ids = self.without_path.read_text(encoding="utf-8").split()
        return ForgetSet(ids_from_hex(ids), f"{self.path.name} is trained without them")

    def forgotten(self) -> ForgetSet | None:
        """Return everything that was deleted from this run, or `None`."""
        forgotten: ForgetSet | None = None
        for receipt in self.receipts():
            forgotten = receipt.forget_set if forgotten is None else forgotten.union(receipt.forget_set)
        return forgotten

    def state_digest(self) -> str:
        """Identify what generates images now: the weights and, if there are any, the exemplars."""
        training = self.manifest.training
        weights = "" if training is None else training.weights_digest
        return (
            f"{weights[:16]}-{self.load_exemplars().digest[:16]}" if self.is_semi_parametric else weights[:16]
        )

    def commit_deletion(self, store: ExemplarStore, receipt: DeletionReceipt) -> Path:
        """Put a store after a deletion in the place of the one before, and file the receipt.

        The new store is written beside the old one and flushed. Then the receipt appears by one rename,
        and from there on the deletion holds: a crash later is finished by `open`, a crash earlier undone.

        Returns:
            The receipt's file.
        """
        with self._lock():
            return self._commit(store, receipt)

    def _commit(self, store: ExemplarStore, receipt: DeletionReceipt) -> Path:
        if self.load_exemplars().digest != receipt.digest_before:
            raise ValueError(f"{self.path} was changed by another deletion; nothing was deleted; try again")
        number = 1 + max((int(path.stem) for path in self._receipt_paths()), default=0)
        following = self.model_path / f"exemplars.next-{number:04d}"
        store.save_pretrained(following)
        flush_tree(following)
        self.receipts_path.mkdir(exist_ok=True)
        flush_folder(self.path)
        receipt_path = self.receipts_path / f"{number:04d}.json"
        write_text(receipt_path, receipt.to_json())
        self._recover()
        return receipt_path

    def _interrupted_deletion(self) -> bool:
        return any(path.name != "exemplars" for path in self.model_path.glob("exemplars*"))

    def _recover(self) -> None:
        """Finish deletions that have their receipt, undo those that have not."""
        current, previous = self.model_path / "exemplars", self.model_path / "exemplars.previous"
        for following in sorted(self.model_path.glob("exemplars.next-*")):
            number = following.name.removeprefix("exemplars.next-")
            if not (self.receipts_path / f"{number}.json").exists():
                shutil.rmtree(following)
                continue
            if current.exists():
                shutil.rmtree(previous, ignore_errors=True)
                current.rename(previous)
            following.rename(current)
            flush_folder(self.model_path)
        shutil.rmtree(previous, ignore_errors=True)
