"""Predict classes: a semi-parametric classifier with its exemplars, or its parametric reference."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gen_unlearn.core import CoreMode
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.forget import ForgetSet
from gen_unlearn.key_bank import KeyBank
from gen_unlearn.lazy_images import ImageArray
from gen_unlearn.models.classifier import ParametricClassifier, SemiParametricClassifier
from gen_unlearn.models.voting import nearest_exemplars, prototype_vote, retrieved_vote
from gen_unlearn.pipelines.adapter_ensemble import AdapterEnsemblePipeline
from gen_unlearn.pipelines.prediction import PredictionConfig as PredictionConfig
from gen_unlearn.pipelines.prediction import Vote as Vote
from gen_unlearn.pixels import to_model_input
from gen_unlearn.processes import process_state
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import id_keys
from gen_unlearn.run_paths import RunPaths
from gen_unlearn.shards import Rows


@dataclass(frozen=True)
class Voters:
    """The exemplars that carried the prediction of one image.

    Attributes:
        rows: rows of the bank when it was asked, int64 ``(n,)``, heaviest first, equal ones by id.
        ids: their ids, uint8 ``(n, 16)``.
        labels: their classes, int64 ``(n,)``.
        weights: share that each has in the vote, float64 ``(n,)``. Of prototypes: how far its score, mixed by
            the gate, lies above the mean score of all prototypes, 0 if below, divided by the sum of this over
            the predicted class, whose prototype it is averaged into. What all scores have in common does not
            matter. If no exemplar of the class lies above, all of them have equal shares.
    """

    rows: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


class ParametricPipeline:
    """Predict with a network that has the classes in its weights; nothing can be deleted from it."""

    def __init__(self, network: ParametricClassifier, prediction: PredictionConfig) -> None:
        self.network = network.eval()
        self.prediction = prediction

    def probabilities(self, images: ImageArray) -> np.ndarray:
        """Map uint8 images ``(n, height, width, channels)`` to probabilities, float64 ``(n, classes)``."""
        return _in_batches(images, self.prediction.batch_size, self.network.device, self.log_probabilities)

    def log_probabilities(self, inputs: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to log-probabilities of the classes."""
        return self.network(inputs).float().log_softmax(dim=1)


class SemiParametricPipeline:
    """Predict by a vote of exemplars, which can be deleted while it serves.

    Several threads may predict and delete at once: each batch is voted on by the exemplars before or after a
    deletion, never by some of each. Images are encoded at the same time, votes and deletions take turns.

    Attributes:
        network: encodes images.
        bank: the exemplars that vote; while others predict, delete with `delete` and not from the bank.
        prediction: who of them votes; may be replaced.
    """

    def __init__(
        self,
        network: SemiParametricClassifier,
        rows: Rows,
        class_names: tuple[str, ...],
        core: CoreMode,
        prediction: PredictionConfig,
    ) -> None:
        """Take over exemplars, as `gen_unlearn.exemplar_keys.encode_exemplars` gives them."""
        shape = (network.config.experts, network.config.key_dim)
        if rows.code_length != shape[0] * shape[1]:
            raise ValueError(
                f"expected exemplars with {shape[0] * shape[1]} codes each, got {rows.code_length}; encode "
                f"them with this network"
            )
        assert rows.codes is not None
        self.network = network.eval()
        self.prediction = prediction
        codes = rows.codes.reshape(-1, *shape)
        self.bank = KeyBank(codes, rows.labels, rows.ids, class_names, core, network.device)
        self._lock = threading.Lock()  # Held by whoever reads or changes the bank.

    def probabilities(self, images: ImageArray) -> np.ndarray:
        """Map uint8 images ``(n, height, width, channels)`` to probabilities, float64 ``(n, classes)``.

        A class without an exemplar has probability 0.

        Raises:
            ValueError: no exemplar is left.
        """
        return _in_batches(images, self.prediction.batch_size, self.network.device, self.log_probabilities)

    def log_probabilities(self, inputs: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to log-probabilities of the classes.

        Raises:
            ValueError: no exemplar is left.
        """
        asking, gate, prediction = self._ask(inputs)
        with self._lock:
            self._require_exemplars()
            bank = self.bank
            if prediction.vote == "prototypes":
                return prototype_vote(asking, bank.prototypes, bank.present, gate)
            scores, rows = self._retrieve(asking, prediction)
            return retrieved_vote(scores, bank.labels_tensor[rows], len(bank.class_names), gate)

    def _ask(self, inputs: Tensor) -> tuple[Tensor, Tensor, PredictionConfig]:
        """Return what images are compared by, ``(batch, experts, key_dim)``, the gate, and who is to vote."""
        features, prediction = self.network.encoder(inputs), self.prediction
        asking = self.network.keys if prediction.vote == "nearest-neighbours" else self.network.queries
        return asking(features), self.network.experts(features), prediction

    def _retrieve(self, asking: Tensor, prediction: PredictionConfig) -> tuple[Tensor, Tensor]:
        """Return scores and rows of the exemplars that vote, ``(batch, experts, neighbours)``."""
        scores, rows = nearest_exemplars(asking, self.bank.keys, prediction.neighbours, self._order)
        return torch.zeros_like(scores) if prediction.vote == "nearest-neighbours" else scores, rows

    def _order(self, rows: Tensor) -> Tensor:
        """Order rows by id and label: their order in the bank depends on what was deleted before."""
        tying = rows.cpu().numpy()
        order = np.lexsort((self.bank.labels[tying], id_keys(self.bank.ids[tying])))
        return torch.from_numpy(order).to(rows.device)

    @torch.inference_mode()
    def voters(self, images: np.ndarray, count: int) -> list[Voters]:
        """Say which exemplars carried the prediction of each image.

        Args:
            images: uint8 ``(n, height, width, channels)``.
            count: exemplars to name for each.

        Raises:
            ValueError: no exemplar is left.
        """
        asking, gate, prediction = self._ask(to_model_input(images).to(self.network.device))
        with self._lock:
            self._require_exemplars()
            if prediction.vote == "prototypes":
                shares = self._shares_in_prototypes(asking, gate)
            else:
                scores, rows = self._retrieve(asking, prediction)
                weights = scores.softmax(dim=2) * gate.exp()[:, :, None]
                shares = weights.new_zeros(len(images), len(self.bank))
                shares.scatter_add_(1, rows.flatten(1), weights.flatten(1))
            return [self._voters(row, count) for row in shares]

    def _shares_in_prototypes(self, queries: Tensor, gate: Tensor) -> Tensor:
        """Return the share of every exemplar in the predicted class, ``(batch, exemplars)``, see `Voters`."""
        bank, mixed = self.bank, queries * gate.exp()[:, :, None]
        predicted = prototype_vote(queries, bank.prototypes, bank.present, gate).argmax(dim=1, keepdim=True)
        mine = bank.labels_tensor == predicted
        common = torch.einsum("bed,ed->b", mixed, bank.prototypes[bank.present].mean(dim=0))
        above = torch.einsum("bed,ned->bn", mixed, bank.keys) - common[:, None]
        above = torch.where(mine, above.clamp_min(0), 0.0)
        above = torch.where(above.any(dim=1, keepdim=True), above, mine.to(above.dtype))
        return above / above.sum(dim=1, keepdim=True)

    def _voters(self, shares: Tensor, count: int) -> Voters:
        """Name the first `count`; equal ones by id, as the order of the bank's rows means nothing."""
        least = shares.topk(min(count, len(shares))).values[-1]
        found = ((shares >= least) & (shares > 0)).nonzero().squeeze(1)
        rows, weights = found.cpu().numpy(), shares[found].double().cpu().numpy()
        order = np.lexsort((self.bank.labels[rows], id_keys(self.bank.ids[rows]), -weights))[:count]
        return Voters(rows[order], self.bank.ids[rows[order]], self.bank.labels[rows[order]], weights[order])

    def delete(self, forget: ForgetSet) -> DeletionReceipt:
        """Delete exemplars from the bank that serves, in time that grows with their number alone.

        It waits for the vote that is being taken, and every later one is without them.

        Raises:
            ValueError: an id is not held; nothing is deleted.
        """
        with self._lock:
            return self.bank.delete(forget)

    def _require_exemplars(self) -> None:
        if not len(self.bank):
            raise ValueError(
                "no exemplar is left, so nothing can be predicted; add some: gen-unlearn add RUN IMAGES"
            )


ClassificationPipeline = ParametricPipeline | SemiParametricPipeline | AdapterEnsemblePipeline


def load_classifier(
    folder: Path, kind: Literal["semi-parametric", "parametric"], core: CoreMode, prediction: PredictionConfig
) -> ClassificationPipeline:
    """Load a classifier and its exemplars from the model folder of a run, onto this process's device.

    Raises:
        ValueError: a file of the exemplars is missing or was changed.
    """
    device, network = process_state().device, folder / RunPaths.classifier_name
    if kind == "parametric":
        parametric = ParametricClassifier.from_pretrained(network, local_files_only=True)
        return ParametricPipeline(parametric.to(device), prediction)
    voting = SemiParametricClassifier.from_pretrained(network, local_files_only=True).to(device)
    names, rows = ExemplarFolder.read(
        folder / RunPaths.exemplars_name, lambda stored: (stored.class_names, stored.all_rows(pixels=False))
    )
    return SemiParametricPipeline(voting, rows, names, core, prediction)


@torch.inference_mode()
def _in_batches(
    images: ImageArray,
    batch_size: int,
    device: torch.device,
    log_probabilities: Callable[[Tensor], Tensor],
) -> np.ndarray:
    """Classify uint8 images ``(n, height, width, channels)`` batch by batch."""
    count = images.shape[0]
    found = []
    for start in range(0, max(count, 1), batch_size):
        inputs = to_model_input(images[np.arange(start, min(start + batch_size, count))])
        found.append(log_probabilities(inputs.to(device)).double().exp().cpu())
    return torch.cat(found).numpy()
