"""Predict classes: a semi-parametric classifier with its exemplars, or its parametric reference."""

from __future__ import annotations

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
from gen_unlearn.pixels import to_model_input
from gen_unlearn.processes import process_state
from gen_unlearn.receipts import DeletionReceipt
from gen_unlearn.repro import id_keys
from gen_unlearn.run_paths import RunPaths
from gen_unlearn.shards import Rows

Vote = Literal["prototypes", "exemplars", "nearest-neighbours"]


@dataclass(frozen=True)
class PredictionConfig:
    """Who votes when a trained semi-parametric classifier predicts.

    Attributes:
        vote: ``"prototypes"``, the mean key of each class (SPM-C); ``"exemplars"``, the nearest exemplars
            with their attention weights (SPM-R); or ``"nearest-neighbours"``, the exemplars whose keys lie
            nearest to the image's own key, one vote each: the comparison without a trained fusion.
        neighbours: exemplars that vote for each image.
        batch_size: images that are classified at a time.
    """

    vote: Vote = "prototypes"
    neighbours: int = 32
    batch_size: int = 256

    def __post_init__(self) -> None:
        if min(self.neighbours, self.batch_size) < 1:
            raise ValueError(
                f"expected neighbours and batch_size of at least 1, got {self.neighbours} and "
                f"{self.batch_size}"
            )


@dataclass(frozen=True)
class Voters:
    """The exemplars that carried the prediction of one image.

    Attributes:
        rows: rows of the bank when it was asked, int64 ``(n,)``, heaviest first, equal ones by id.
        ids: their ids, uint8 ``(n, 16)``.
        labels: their classes, int64 ``(n,)``.
        weights: share that each has in the vote, float64 ``(n,)``. Of prototypes: the share that it has in
            the score of the predicted class, whose prototype it is averaged into.
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

    Attributes:
        network: encodes images.
        bank: the exemplars that vote.
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

    def probabilities(self, images: ImageArray) -> np.ndarray:
        """Map uint8 images ``(n, height, width, channels)`` to probabilities, float64 ``(n, classes)``.

        A class without an exemplar has probability 0.

        Raises:
            ValueError: no exemplar is left.
        """
        self._require_exemplars()
        return _in_batches(images, self.prediction.batch_size, self.network.device, self.log_probabilities)

    def log_probabilities(self, inputs: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to log-probabilities of the classes."""
        features = self.network.encoder(inputs)
        bank, gate, classes = self.bank, self.network.experts(features), len(self.bank.class_names)
        if self.prediction.vote == "prototypes":
            return prototype_vote(self.network.queries(features), bank.prototypes, bank.present, gate)
        scores, rows = self._retrieve(features)
        labels = bank.labels_tensor[rows]
        if self.prediction.vote == "nearest-neighbours":
            scores = torch.zeros_like(scores)
        return retrieved_vote(scores, labels, classes, gate)

    def _retrieve(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and rows of the exemplars that vote, ``(batch, experts, neighbours)``."""
        asking = self.network.keys if self.prediction.vote == "nearest-neighbours" else self.network.queries
        return nearest_exemplars(asking(features), self.bank.keys, self.prediction.neighbours, self._order)

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
        self._require_exemplars()
        features = self.network.encoder(to_model_input(images).to(self.network.device))
        gate = self.network.experts(features).exp()
        if self.prediction.vote == "prototypes":
            shares = self._shares_in_prototypes(features, gate)
        else:
            scores, rows = self._retrieve(features)
            uniform = self.prediction.vote == "nearest-neighbours"
            weights = (torch.zeros_like(scores) if uniform else scores).softmax(dim=2) * gate[:, :, None]
            shares = weights.new_zeros(len(images), len(self.bank))
            shares.scatter_add_(1, rows.flatten(1), weights.flatten(1))
        retrieved = self.network.config.experts * self.prediction.neighbours
        heaviest, rows = shares.topk(min(max(count, retrieved), len(self.bank)), dim=1)
        return [
            self._voters(row[weight > 0], weight[weight > 0], count)
            for row, weight in zip(rows.cpu().numpy(), heaviest.double().cpu().numpy(), strict=True)
        ]

    def _shares_in_prototypes(self, features: Tensor, gate: Tensor) -> Tensor:
        """Return the share of every exemplar in the score of the predicted class, ``(batch, exemplars)``."""
        queries = self.network.queries(features)
        votes = prototype_vote(queries, self.bank.prototypes, self.bank.present, gate.log())
        scores = torch.einsum("bed,ned,be->bn", queries, self.bank.keys, gate)
        mine = self.bank.labels_tensor == votes.argmax(dim=1, keepdim=True)
        scores = torch.where(mine, scores.clamp_min(0), 0.0)
        return scores / scores.sum(dim=1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)

    def _voters(self, rows: np.ndarray, weights: np.ndarray, count: int) -> Voters:
        """Name the first `count`; equal ones by id, as the order of the bank's rows means nothing."""
        order = np.lexsort((self.bank.labels[rows], id_keys(self.bank.ids[rows]), -weights))[:count]
        return Voters(rows[order], self.bank.ids[rows[order]], self.bank.labels[rows[order]], weights[order])

    def delete(self, forget: ForgetSet) -> DeletionReceipt:
        """Delete exemplars from the bank that serves, in time that grows with their number alone.

        Raises:
            ValueError: an id is not held; nothing is deleted.
        """
        return self.bank.delete(forget)

    def _require_exemplars(self) -> None:
        if not len(self.bank):
            raise ValueError("no exemplar is left, so nothing can be predicted; add exemplars")


ClassificationPipeline = ParametricPipeline | SemiParametricPipeline


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
