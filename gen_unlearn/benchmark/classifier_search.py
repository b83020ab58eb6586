"""Search the settings of a method for classifiers, by the accuracies of pilots."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from torch import nn

from gen_unlearn.benchmark.classifier_training import logits_of
from gen_unlearn.benchmark.entries import MethodEntry
from gen_unlearn.benchmark.prepared_sets import PreparedSet
from gen_unlearn.benchmark.recipe import BenchmarkRecipe
from gen_unlearn.benchmark.search import Pilots, Searched, search
from gen_unlearn.benchmark.selection import Accuracies
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED
from gen_unlearn.benchmark.trained_models import Role
from gen_unlearn.methods.classification.table import METHODS
from gen_unlearn.metrics.classifier_accuracy import accuracy


def search_settings(
    entry: MethodEntry, prepared: PreparedSet, recipe: BenchmarkRecipe, out: Path, accelerator: Accelerator
) -> Searched:
    """Search the settings of a method on a forget set, or find what an earlier search chose.

    Trials are judged by accuracies on forgotten, retained and held-out images alone.
    """
    if not recipe.search.trials:
        return Searched(entry.settings)
    data = prepared.case.unlearn_data()

    def load(role: Role, seed: int) -> nn.Module:
        return prepared.pilots[role].load(out / "models", seed).to(accelerator.device)

    pilots = Pilots(
        prepared.pilots[ORIGINAL].seeds,
        lambda seed: load(ORIGINAL, seed),
        lambda seed: load(RETRAINED, seed),
        lambda model: accuracies(model, prepared),
        data,
        METHODS,
        recipe.training.sample_passes(len(data.retain)),
        recipe.cap,
        [prepared.entry.name, prepared.digest, [pool.key for pool in prepared.pilots.values()]],
    )
    return search(entry, pilots, recipe.search, out / "search", accelerator)


def accuracies(model: nn.Module, prepared: PreparedSet) -> Accuracies:
    """Return the accuracies in percent that a selection may see; of a class, on held-out images of others."""
    case = prepared.case
    heldout = case.splits.heldout.select(~case.heldout_forgotten)
    parts = (prepared.sets.images["forget"], prepared.sets.images["retain"], heldout)
    found = [accuracy(logits_of(model, images), images.labels).value for images in parts]
    return Accuracies(*found)
