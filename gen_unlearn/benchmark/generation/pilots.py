"""Search the settings of a method for generators, by the denoising losses of pilots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.benchmark.entries import MethodEntry
from gen_unlearn.benchmark.generation.prepared import PreparedGenerators
from gen_unlearn.benchmark.generation.recipe import GenerationRecipe
from gen_unlearn.benchmark.search import Pilots, Searched, search
from gen_unlearn.benchmark.selection import Levels
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED
from gen_unlearn.benchmark.trained_models import Role
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.judging.evidence import in_proportion, of_classes
from gen_unlearn.methods.diffusion.denoising import DenoisingLoss
from gen_unlearn.methods.diffusion.table import METHODS
from gen_unlearn.methods.logits import Batch
from gen_unlearn.pixels import to_model_input


def search_settings(
    entry: MethodEntry,
    prepared: PreparedGenerators,
    recipe: GenerationRecipe,
    out: Path,
    accelerator: Accelerator,
) -> Searched:
    """Search the settings of a method on a forget set, or find what an earlier search chose.

    Trials are judged by the losses on forgotten, retained and held-out images, without test images and
    without samples: what a table shows is measured in other ways.
    """
    if not recipe.search.trials:
        return Searched(entry.settings)
    levels = LossLevels.of(prepared, recipe)

    def load(role: Role, seed: int) -> nn.Module:
        return prepared.pilots[role].load(out / "models", seed).to(accelerator.device)

    pilots = Pilots(
        prepared.pilots[ORIGINAL].seeds,
        lambda seed: load(ORIGINAL, seed),
        lambda seed: load(RETRAINED, seed),
        levels,
        prepared.case.unlearn_data(),
        METHODS,
        recipe.retraining_passes,
        recipe.cap,
        [prepared.entry.name, prepared.digest, [pool.key for pool in prepared.pilots.values()]],
    )
    return search(entry, pilots, recipe.search, out / "search", accelerator)


@dataclass(frozen=True, eq=False)
class LossLevels:
    """Measures the denoising losses of a model as ``100 ln l``: a percent of the loss is a unit.

    Attributes:
        parts: forgotten, retained and held-out images, the last of classes that are retained.
        draws: noises and timesteps of each image, the same for all models.
        seed: of these.
    """

    parts: tuple[IndexedImages, IndexedImages, IndexedImages]
    draws: int
    seed: int

    @classmethod
    def of(cls, prepared: PreparedGenerators, recipe: GenerationRecipe) -> LossLevels:
        """Choose the images, with the classes of each part in proportion."""
        measured, search = prepared.measured, recipe.search
        case = measured.case
        heldout = of_classes(case.splits.heldout, measured.retained_classes)
        parts = (measured.forgotten, case.retain_images, heldout)
        forget, retain, unseen = (in_proportion(part, search.images) for part in parts)
        return cls((forget, retain, unseen), search.draws, search.seed)

    def __call__(self, model: nn.Module) -> Levels:
        """Return the levels of a `DenoisingModel`.

        Raises:
            ValueError: a loss is not finite.
        """
        return Levels(*(self._level(model, part) for part in self.parts))

    @torch.no_grad()
    def _level(self, model: nn.Module, images: IndexedImages) -> float:
        device = next(model.parameters()).device
        inputs = to_model_input(images.all_images()).to(device)
        labels = torch.from_numpy(images.labels).to(device)
        loss, was_training = DenoisingLoss(self.seed, "search"), model.training
        model.eval()
        found = [
            loss.per_image(model, Batch(inputs, labels, images.ids, step=draw)).double().mean().item()
            for draw in range(self.draws)
        ]
        model.train(was_training)
        mean = float(np.mean(found))
        if not (math.isfinite(mean) and mean > 0):
            raise ValueError(f"expected a finite loss above 0, got {mean}; lower the learning rate")
        return 100 * math.log(mean)
