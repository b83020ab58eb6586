"""Predict with an adapter ensemble: a frozen encoder, and the few adapters with the nearest keys."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gen_unlearn.adapters.adapter_folder import AdapterFolder
from gen_unlearn.adapters.answering import Answers, answers
from gen_unlearn.adapters.encoding import block_codes
from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.family import WEIGHTS, AdapterState, Subtractable
from gen_unlearn.adapters.recipe import EnsembleRecipe, ensemble_recipe
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.release import HeldBack, ReleaseConfig, label_only
from gen_unlearn.adapters.routing import route
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.exemplar_keys import BLOCK
from gen_unlearn.lazy_images import ImageArray
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.pipelines.prediction import PredictionConfig
from gen_unlearn.processes import process_state
from gen_unlearn.run_paths import RunPaths


class Classified(NamedTuple):
    """What an ensemble classified images as.

    Attributes:
        probabilities: float64 ``(n, classes)``, see `as_probabilities`.
        answering: how many adapters answered for each image, int64 ``(n,)``. Which images fewer answer for
            tells where images were deleted: it is not for publication.
    """

    probabilities: np.ndarray
    answering: np.ndarray


@dataclass(frozen=True)
class ServedFiles:
    """What answers are made from on disk.

    Attributes:
        adapters: folder of the adapters.
        held_back: the file that says which are held back; it may be missing.
        release: when they are not any more.
    """

    adapters: Path
    held_back: Path
    release: ReleaseConfig

    def read(self, recipe: EnsembleRecipe) -> tuple[dict[int, AdapterState], frozenset[int]]:
        """Load the adapters that answer, and which of them are held back now.

        A change puts the file in place before the adapters: read once more after them, it covers them.

        Raises:
            ValueError: a file is missing or was changed.
        """
        before = HeldBack.load(self.held_back)
        states = _serving(self.adapters, recipe)
        now = datetime.now(UTC)
        parts = [held.settled(self.release, now) for held in (before, HeldBack.load(self.held_back))]
        return states, frozenset().union(*(held.adapters for held in parts))


class AdapterEnsemblePipeline:
    """Predict with adapters that are loaded for answering only: there is nothing to delete from.

    An image is encoded in a block of fixed size, so that its codes, and with them the adapters that are
    asked, do not depend on the images beside it. Several threads may predict while another one reloads: each
    batch is answered by the adapters before or after, never by some of each.

    Attributes:
        network: the backbone.
        recipe: what decides the adapters, but for the records.
        prediction: how many images are answered for at a time.
    """

    def __init__(
        self,
        network: AdapterBackbone,
        recipe: EnsembleRecipe,
        states: Mapping[int, AdapterState],
        prediction: PredictionConfig,
        files: ServedFiles | None = None,
    ) -> None:
        """Take over adapters.

        Args:
            network: the backbone.
            recipe: what decides the adapters, but for the records.
            states: the adapters that answer.
            prediction: how many images are answered for at a time.
            files: where `reload` finds the adapters.
        """
        self.network, self.recipe, self.prediction = network.eval(), recipe, prediction
        self._served: tuple[dict[int, AdapterState], frozenset[int]] = dict(states), frozenset()
        self._files = files
        self._lock = threading.Lock()  # Held by whoever loads adapters, so that the latest ones stay.

    @property
    def held_back(self) -> frozenset[int]:
        """Adapters that had changed and were not released yet when they were loaded; may be replaced.

        See `label_only`.
        """
        return self._served[1]

    @held_back.setter
    def held_back(self, adapters: frozenset[int]) -> None:
        """Hold other adapters back."""
        self._served = self._served[0], adapters

    @property
    def label_only(self) -> bool:
        """Whether images are told their class alone, with probability 1, as some adapter is held back.

        All images, whatever adapters they ask: which of them ask one that is held back tells where images
        were deleted. See `gen_unlearn.adapters.release`.
        """
        return bool(self.held_back)

    def with_adapters(self, states: Mapping[int, AdapterState]) -> AdapterEnsemblePipeline:
        """Return a pipeline of this backbone and recipe with other adapters, in memory; none is held back."""
        return AdapterEnsemblePipeline(self.network, self.recipe, states, self.prediction)

    def with_all_scores(self) -> AdapterEnsemblePipeline:
        """Return a pipeline of the same adapters in memory that holds none back: to judge, not to publish."""
        return self.with_adapters(self._served[0])

    def reload(self) -> None:
        """Answer with the adapters that are on disk now, after a change or when some were released.

        Raises:
            ValueError: the pipeline was made of adapters in memory.
        """
        if self._files is None:
            raise ValueError("expected a pipeline that was loaded from a run, got one of adapters in memory")
        with self._lock:
            self._served = self._files.read(self.recipe)

    def classified(self, images: ImageArray) -> Classified:
        """Classify uint8 images ``(n, height, width, channels)``, and count the adapters that answered."""
        count, size = images.shape[0], self.prediction.batch_size
        found = []
        for start in range(0, max(count, 1), size):
            rows = np.arange(start, min(start + size, count))
            blocks = [images[rows[at : at + BLOCK]] for at in range(0, max(len(rows), 1), BLOCK)]
            codes = [block_codes(self.network, block) for block in blocks]
            found.append(self._classified(np.concatenate(codes)))
        return Classified(*map(np.concatenate, zip(*found, strict=True)))

    def probabilities(self, images: ImageArray) -> np.ndarray:
        """Map uint8 images ``(n, height, width, channels)`` to probabilities, float64 ``(n, classes)``.

        All are 0 for an image that no adapter answers for.
        """
        return self.classified(images).probabilities

    @torch.inference_mode()
    def log_probabilities(self, inputs: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to log-probabilities of the classes.

        They have no gradient, and are minus infinity for an image that no adapter answers for. The images are
        encoded as one batch, whose size may decide the last bits of their features.
        """
        codes, _ = self.network.codes(inputs)
        return torch.from_numpy(self._classified(codes).probabilities).to(inputs.device).log()

    def _classified(self, codes: np.ndarray) -> Classified:
        """Ask the adapters that the codes, int16 ``(n, features)``, are routed to."""
        states, held_back = self._served
        routes = route(codes, self.recipe.keys, self.recipe.neighbours)
        found = answers(self.recipe, states, codes, routes)
        probabilities = as_probabilities(found)
        return Classified(label_only(probabilities) if held_back else probabilities, found.answering)


def as_probabilities(found: Answers) -> np.ndarray:
    """Return the scores of adapters as probabilities, float64 ``(n, classes)``, which keep the best class.

    Scores of trained heads are probabilities already. Those of ridge heads are a regression on classes, which
    goes a little below 0 and above 1: they are clipped at 0 and divided by their sum. If no score of an image
    is above 0, they are taken above their least one; if all are equal, so are the probabilities. A row
    without an answer stays 0.
    """
    scores = found.scores
    least = scores.min(axis=1, keepdims=True)
    positive = (scores > 0).any(axis=1, keepdims=True)
    shares = np.where(positive, scores.clip(0), scores - least)
    totals = shares.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, shares / np.where(totals > 0, totals, 1), 1 / scores.shape[1])
    return np.where((found.answering > 0)[:, None], shares, 0.0)


def load_backbone(folder: Path, config: ClassifierRunConfig) -> tuple[AdapterBackbone, EnsembleRecipe]:
    """Load what no deletion changes from the model folder of a run, onto this process's device.

    Raises:
        ValueError: the exemplars' description is missing or was changed.
    """
    network = AdapterBackbone.from_pretrained(folder / RunPaths.classifier_name, local_files_only=True)
    names = ExemplarFolder.read(folder / RunPaths.exemplars_name, lambda stored: stored.class_names)
    recipe = ensemble_recipe(config, network.public_keys(), names)
    return network.to(process_state().device).eval(), recipe


def load_ensemble_pipeline(
    run: RunPaths, config: ClassifierRunConfig, prediction: PredictionConfig
) -> AdapterEnsemblePipeline:
    """Load an adapter ensemble of a run for answering; adapters that are held back give the class alone.

    Args:
        run: where the files are.
        config: the recipe.
        prediction: how many images are answered for at a time.

    Raises:
        ValueError: a file of the ensemble is missing or was changed.
    """
    network, recipe = load_backbone(run.model_path, config)
    files = ServedFiles(run.adapters_path, run.held_back_path, config.model.adapters.release)
    pipeline = AdapterEnsemblePipeline(network, recipe, {}, prediction, files)
    pipeline.reload()
    return pipeline


def load_ensemble(
    folder: Path,
    config: ClassifierRunConfig,
    environments_of: Callable[[str, str], tuple[str, ...] | None],
) -> AdapterEnsemble | None:
    """Load an adapter ensemble with its records from the model folder of a run, to delete from it in memory.

    Args:
        folder: the model folder.
        config: the recipe.
        environments_of: tells where adapters were fit, from the digests of records and adapters that were
            read; `None` if these are not one state.

    Returns:
        The ensemble; `None` if a change came between reading the records and the adapters.

    Raises:
        ValueError: a file is missing or was changed.
    """
    _, recipe = load_backbone(folder, config)
    rows, exemplars = ExemplarFolder.read(
        folder / RunPaths.exemplars_name, lambda stored: (stored.all_rows(pixels=False), stored.digest)
    )
    states, adapters = AdapterFolder.read(
        folder / RunPaths.adapters_name, lambda stored: (_everything(stored), stored.digest)
    )
    environments = environments_of(exemplars, adapters)
    if environments is None:
        return None
    return AdapterEnsemble(recipe, *Records.of_rows(rows, recipe.shape.features), states, environments)


def _serving(folder: Path, recipe: EnsembleRecipe) -> dict[int, AdapterState]:
    """Load the adapters that answer; of those that are made from sums, the weights alone."""
    names = (WEIGHTS,) if isinstance(recipe.family, Subtractable) else None
    return AdapterFolder.read(folder, lambda stored: stored.serving(names))


def _everything(stored: AdapterFolder) -> dict[int, AdapterState]:
    states = {adapter: stored.state(adapter) for adapter in stored.files}
    return {adapter: state for adapter, state in states.items() if state is not None}
