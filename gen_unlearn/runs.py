"""The run folder: where programs meet in files.

What lies where is said in `gen_unlearn.run_paths`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gen_unlearn.adapters.promise import environment_digest
from gen_unlearn.atomic import flush_folder, flush_tree, write_text
from gen_unlearn.changes import RunBusyError
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.config import Recipe, RunConfig, load_recipe
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
from gen_unlearn.ledger import Ledger, LedgerEntry
from gen_unlearn.manifest import RunManifest, TrainingRecord
from gen_unlearn.pipelines.prediction import PredictionConfig
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.run_records import RunRecords
from gen_unlearn.sealing import RunKey, Tombstones
from gen_unlearn.shards import sha256

if TYPE_CHECKING:
    from gen_unlearn.adapters.ensemble import AdapterEnsemble
    from gen_unlearn.exemplars import ExemplarStore
    from gen_unlearn.pipelines.classification import ClassificationPipeline
    from gen_unlearn.pipelines.sampling import GeneratorPipeline

_RELEASE = ("model.adapters.minimum_batch", "model.adapters.deadline_days")
_CHANGEABLE = ("data.source", "data.test_source", "sampling.", "prediction.", "evaluation.", *_RELEASE)


class SavedModel(Protocol):
    """What a training ends with: a generator's pipeline, or a classifier with its exemplars."""

    def save_pretrained(self, save_directory: Path, /) -> None:
        """Save all files of the model to a folder."""


@dataclass(frozen=True)
class RunFolder(RunRecords):
    """One run on disk; see the module's docstring for what lies where.

    Attributes:
        overrides: recipe values to use instead of those on disk, such as ``sampling.seed=1``.
        notice: what `open` repaired, for people.
    """

    overrides: tuple[str, ...] = ()
    notice: str | None = field(default=None, compare=False)

    @classmethod
    def create(
        cls, path: Path, config: Recipe, manifest: RunManifest, without: Tombstones | None = None
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
            if run.manifest.made_from != manifest.sealed(run.key).made_from:
                raise ValueError(
                    f"{path} holds another run (recipe, data, forget set or the weights that it started from "
                    "differ); choose another --out"
                )
            return run
        if path.exists() and (not path.is_dir() or not run.is_begun):
            raise ValueError(f"{path} is not empty and holds no run; choose another --out")
        path.mkdir(parents=True, exist_ok=True)
        key = RunKey.fresh() if without is None else without.key
        key.save(run.key_path)
        write_text(run.recipe_path, config.to_yaml())
        if without is not None:
            write_text(run.without_path, without.to_text())
        write_text(run.manifest_path, manifest.sealed(key).to_json())
        return cls(path)

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
    def recipe(self) -> Recipe:
        """The recipe, with the overrides of this use."""
        return load_recipe(self.recipe_path, self.overrides)

    @property
    def config(self) -> RunConfig:
        """The recipe of a generator.

        Raises:
            ValueError: the run is a classifier.
        """
        if not isinstance(self.recipe, RunConfig):
            raise ValueError(
                f"expected a generator, got the classifier {self.path}; to classify images: "
                f"gen-unlearn predict {self.path} IMAGES"
            )
        return self.recipe

    @property
    def classifier_config(self) -> ClassifierRunConfig:
        """The recipe of a classifier.

        Raises:
            ValueError: the run is a generator.
        """
        if not isinstance(self.recipe, ClassifierRunConfig):
            raise ValueError(
                f"expected a classifier, got the generator {self.path}; to generate images: "
                f"gen-unlearn sample {self.path} --out DIR"
            )
        return self.recipe

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
    def has_exemplars(self) -> bool:
        """Whether images can be deleted from this run's model."""
        return self.recipe.model.kind in ("semi-parametric", "adapter-ensemble")

    @property
    def is_ensemble(self) -> bool:
        """Whether the model is an adapter ensemble."""
        return self.recipe.model.kind == "adapter-ensemble"

    def complete_training(self, model: SavedModel, record: TrainingRecord) -> None:
        """Save the trained model, start the ledger, and note in the manifest that training is complete."""
        from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline

        unfinished = self.path / "model.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(model, SemiParametricDDPMPipeline):
            model.save_pretrained(unfinished, include_exemplars=True)
        else:
            model.save_pretrained(unfinished)
        flush_tree(unfinished)
        shutil.rmtree(self.model_path, ignore_errors=True)
        unfinished.rename(self.model_path)
        flush_folder(self.path)
        manifest = replace(self.manifest, training=record).to_json()
        files = self.unchanging_files() | {self.manifest_path.name: sha256(manifest.encode())}
        if self.has_exemplars:
            exemplars = self.exemplar_folder()
            state = self.state_of(exemplars)
            here = (environment_digest(self.fitting_device),) if self.is_ensemble else None
            Ledger.start(self.ledger_path, self.key, state, len(exemplars), files, here)
        else:
            Ledger.start(self.ledger_path, self.key, "", 0, files)
        write_text(self.manifest_path, manifest)

    def load_pipeline(self) -> GeneratorPipeline:
        """Load the model as it is now; a ValueError says that its parts do not belong together."""
        from gen_unlearn.pipelines.loading import load_generator, read_one_state

        folder, config, known = self.model_path, self.config, self.environments_of
        if config.model.kind == "adapter-ensemble":
            from gen_unlearn.pipelines.lora_loading import load_lora_pipeline

            return read_one_state(self, lambda: load_lora_pipeline(folder, config.sampling, known))
        return load_generator(folder, config.model.kind, config.sampling, config.noise)

    def load_classifier(self, prediction: PredictionConfig | None = None) -> ClassificationPipeline:
        """Load the classifier as it is now; how it predicts says the recipe, or `prediction`.

        Adapters of an ensemble that are held back give the class alone, see `gen_unlearn.adapters.release`.
        """
        config = self.classifier_config
        asked = config.prediction if prediction is None else prediction
        if config.model.kind == "adapter-ensemble":
            from gen_unlearn.pipelines.adapter_ensemble import load_ensemble_pipeline

            return load_ensemble_pipeline(self, config, asked)
        from gen_unlearn.pipelines.classification import load_classifier

        return load_classifier(self.model_path, config.model.kind, config.core.mode, asked)

    def load_ensemble(self) -> AdapterEnsemble:
        """Load an adapter ensemble with its records, to delete from it in memory.

        Raises:
            ValueError: the run is another model, or records and adapters do not belong together.
        """
        if not self.is_ensemble:
            raise ValueError(
                f"expected an adapter ensemble, got {self.path}, a {self.recipe.model.kind} model"
            )
        from gen_unlearn.pipelines.adapter_ensemble import load_ensemble
        from gen_unlearn.pipelines.loading import read_one_state

        folder, config, known = self.model_path, self.classifier_config, self.environments_of
        return read_one_state(self, lambda: load_ensemble(folder, config, known))

    def exemplar_folder(self) -> ExemplarFolder:
        """Open the exemplars on disk: enough to delete from them, and to ask what is held.

        Raises:
            ValueError: the model has no exemplars.
        """
        if not self.has_exemplars:
            raise ValueError(
                f"{self.path} is a {self.recipe.model.kind} model: images are in its weights, where none "
                "can be added or deleted; train another: gen-unlearn train --config RECIPE [--without RUN]; "
                f"or unlearn approximately: gen-unlearn unlearn {self.path} --method NAME --out NEW"
            )
        return ExemplarFolder.open(self.exemplars_path)

    def load_exemplars(self) -> ExemplarStore:
        """Load all exemplars."""
        from gen_unlearn.exemplars import ExemplarStore

        return ExemplarStore.from_pretrained(self.exemplar_folder().path)

    def keep_split(self, test: IndexedImages, parts: CoreSplit) -> None:
        """Remember which images were held out and which are core: the split of another source would move."""
        if not self.held_out_path.exists():
            write_text(self.held_out_path, "".join(f"{name}\n" for name in ids_to_hex(test.ids)))
        if self.recipe.core.mode == "public" and not self.core_path.exists():
            write_text(self.core_path, "".join(f"{name}\n" for name in ids_to_hex(parts.core.ids)))

    def load_split(self) -> Split:
        """Load the run's data, held out and classes as when it was trained, whatever the source holds now."""
        return self.split(self.recipe.data)

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
        return split_core(train, self.recipe.core, self.core_ids if self.core_path.exists() else None)

    def state_digest(self) -> str:
        """Identify what generates images now: the weights and, if there are any, the exemplars."""
        return self._state_digest(self.ledger.entries[-1])

    def undeleted_state_digest(self) -> str:
        """Identify what generated images before anything was deleted, images that were added included."""
        if (unlearned := self.manifest.unlearned) is not None:
            return unlearned.origin_weights[:16]
        entries = self.ledger.entries
        first = next((entry.sequence for entry in entries if entry.kind == "deleted"), len(entries))
        return self._state_digest(entries[first - 1])

    def _state_digest(self, entry: LedgerEntry) -> str:
        training = self.manifest.training
        weights = "" if training is None else training.weights_digest[:16]
        return f"{weights}-{entry.state[:16]}" if self.has_exemplars else weights
