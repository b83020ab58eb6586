"""A trained classifier with its exemplars in memory, and encoding images with the network of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gen_unlearn.adapters.encoding import encode_records
from gen_unlearn.commands.ensemble_recipe import recipe_of
from gen_unlearn.commands.trained_ensemble import TrainedEnsemble
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplar_keys import encode_exemplars, save_exemplars
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.classifier import ClassifierNetwork, SemiParametricClassifier
from gen_unlearn.processes import process_state
from gen_unlearn.run_paths import RunPaths
from gen_unlearn.runs import RunFolder
from gen_unlearn.shards import Rows


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained network with its exemplars.

    Attributes:
        network: the network, in evaluation mode.
        exemplars: what votes, with pictures and keys; `None` of a parametric network.
        class_names: names of all classes.
        decoded_size: ``(height, width)`` of the images that the ids stand for.
    """

    network: ClassifierNetwork
    exemplars: Rows | None
    class_names: tuple[str, ...]
    decoded_size: tuple[int, int]

    def save_pretrained(self, save_directory: Path, /) -> None:
        """Save the network and its exemplars to a folder."""
        self.network.save_pretrained(save_directory / RunPaths.classifier_name)
        if self.exemplars is not None:
            self.save_exemplars(save_directory / RunPaths.exemplars_name)

    def save_exemplars(self, folder: Path) -> None:
        """Save the exemplars alone to a folder.

        Raises:
            ValueError: a parametric network, which has none.
        """
        if self.exemplars is None:
            raise ValueError("expected a semi-parametric classifier, got a parametric one, without exemplars")
        save_exemplars(self.exemplars, self.class_names, self.decoded_size, folder)


def encode_again(run: RunFolder, data: IndexedImages) -> TrainedClassifier | TrainedEnsemble:
    """Return the trained network of a run with `data` as its exemplars, computed as the training did.

    Raises:
        ValueError: the run is neither a semi-parametric classifier nor an adapter ensemble.
    """
    folder = run.exemplar_folder()
    if run.is_ensemble:
        path = run.classifier_path if run.recipe.task == "classification" else run.router_path
        router = AdapterBackbone.from_pretrained(path, local_files_only=True)
        recipe, router = recipe_of(run), router.to(process_state().device).eval()
        with threads_of_training(run):
            rows = encode_records(router, data, recipe.neighbours, folder.image_shape[:2])
        return TrainedEnsemble(router, recipe, rows, folder.decoded_size)
    network = SemiParametricClassifier.from_pretrained(run.classifier_path, local_files_only=True)
    network = network.to(process_state().device).eval()
    with threads_of_training(run):
        rows = encode_exemplars(network, data, folder.image_shape[:2])
    return TrainedClassifier(network, rows, folder.class_names, folder.decoded_size)


@contextmanager
def threads_of_training(run: RunFolder) -> Iterator[None]:
    """Compute with as many threads as the training of a run had: another number can give other bits."""
    record, before = run.manifest.training, torch.get_num_threads()
    assert record is not None, "an opened run is trained"
    torch.set_num_threads(record.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
