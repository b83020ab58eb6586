"""SISA (arXiv 1912.03817) with linear heads on encoded images, to compare the adapter ensemble with.

Records are divided into shards, and each shard into slices. The head of a shard is trained on its first
slice, then on the first two, and so on, and is kept after each of these stages: a deletion from a slice
trains again from the stage before it. Heads answer together, by the mean of their probabilities.

Mistakes of the published code that this one does not make:

- kept stages are found by the content of all slices before them and by all settings, and not by indices: a
  stage that held a deleted record is never used again, and is thrown away;
- momentum is kept with the weights, so that a head that goes on from a stage equals one that never stopped;
- a record's shard, its slice and its place in every epoch follow from a hash of its id. No deletion changes
  those of another record, and no window of a batch stays open where a record was;
- the heads' answers are averaged with equal weights, and not with those of sizes before deletions.

So the state is a function of the records that are left, to the bit, which the published method is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gen_unlearn.adapters.records import STEPS, Records
from gen_unlearn.repro import among, derive_seed, digest_arrays, digest_json, id_keys, keyed_order


@dataclass(frozen=True)
class SisaConfig:
    """How a SISA ensemble is trained.

    Attributes:
        shards: heads, each with its own records.
        slices: stages of training of a head.
        epochs: passes over a shard in all. With slices, each stage has ``2 epochs / (slices + 1)`` over what
            it has, rounded, which shows about as many records.
        batch_size: records of a step.
        learning_rate: at the beginning of a stage; it falls to 0 by a straight line.
        momentum: of the gradient.
        penalty: on the squared weights, for the sum of all losses: the weight decay of a stage is the penalty
            divided by its records.
        seed: of shards, slices and orders.
    """

    shards: int = 10
    slices: int = 1
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    penalty: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.shards, self.slices, self.epochs, self.batch_size) < 1:
            raise ValueError(
                f"expected shards, slices, epochs and batch_size of at least 1, got {self.shards}, "
                f"{self.slices}, {self.epochs} and {self.batch_size}"
            )

    @property
    def stage_epochs(self) -> int:
        """Passes of one stage over its records."""
        return max(1, round(2 * self.epochs / (self.slices + 1)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all settings."""
        return digest_json(asdict(self))

    def expected_visits(self, records: int) -> float:
        """Return how many records a random deletion shows again, on average over records and slices."""
        of_slice = records / self.shards / self.slices
        again = sum(stage * stage for stage in range(1, self.slices + 1)) / self.slices
        return self.stage_epochs * of_slice * again


class HeadStage(NamedTuple):
    """A head after a stage: weights and momentum, float64 ``(features + 1, classes)``."""

    weights: np.ndarray
    velocity: np.ndarray


class Sisa:
    """A SISA ensemble that records can be deleted from.

    Attributes:
        config: how it is trained.
        records: what is left.
        visits: how many records were shown so far, in all epochs.
    """

    def __init__(self, config: SisaConfig, records: Records, classes: int) -> None:
        self.config, self.records, self.classes = config, records, classes
        self.visits = 0
        self._shard = _places(records.ids, config.shards, config.seed, "shard")
        self._slice = _places(records.ids, config.slices, config.seed, "slice")
        self._content: dict[tuple[int, int], str] = {}
        self._stages: dict[str, HeadStage] = {}
        self._chains: dict[int, list[str]] = {}
        self._heads: dict[int, str] = {}
        for shard in range(config.shards):
            self._train(shard, range(config.slices))

    def delete(self, ids: np.ndarray) -> int:
        """Delete every record of some ids, uint8 ``(m, 16)``; return how many records are shown again.

        Raises:
            ValueError: an id is not held; nothing is deleted.
        """
        before = self.visits
        wanted = ids[np.argsort(id_keys(ids))]
        leaving = among(self.records.ids, wanted)
        if not among(wanted, self.records.ids).all():
            raise ValueError("expected ids that are held, got others too; nothing was deleted")
        places = set(zip(self._shard[leaving].tolist(), self._slice[leaving].tolist(), strict=True))
        stay = ~leaving
        self.records = self.records.select(stay)
        self._shard, self._slice = self._shard[stay], self._slice[stay]
        for shard in sorted({shard for shard, _ in places}):
            self._train(shard, [part for other, part in places if other == shard])
        return self.visits - before

    def probabilities(self, codes: np.ndarray) -> np.ndarray:
        """Map codes, int16 ``(n, features)``, to the mean of the heads' probabilities, ``(n, classes)``."""
        inputs, total = _inputs(codes), np.zeros((len(codes), self.classes))
        for key in self._heads.values():
            total += _softmax(inputs @ self._stages[key].weights)
        return total / max(1, len(self._heads))

    @property
    def heads(self) -> dict[int, str]:
        """Digest of the weights of the head of each shard that has records."""
        return {shard: digest_arrays(self._stages[key].weights) for shard, key in self._heads.items()}

    @property
    def kept_stages(self) -> frozenset[str]:
        """The names of all stages that are kept: digests of everything that they were trained on."""
        return frozenset(self._stages)

    def _train(self, shard: int, changed: Iterable[int]) -> None:
        """Train the stages of a shard that are not kept, after some of its slices changed."""
        rows = np.flatnonzero(self._shard == shard)
        for part in changed:
            members = self.records.select(rows[self._slice[rows] == part])
            self._content[shard, part] = members.digest
        names, name = [], digest_json([self.config.digest, shard])
        stage: HeadStage | None = None
        for part in range(self.config.slices):
            name = digest_json([name, self._content[shard, part]])
            names.append(name)
            if name not in self._stages:
                members = self.records.select(rows[self._slice[rows] <= part])
                self._stages[name] = self._stage(stage, members, shard, part)
            stage = self._stages[name]
        self._forget_stages(shard, names, bool(len(rows)))

    def _forget_stages(self, shard: int, names: list[str], filled: bool) -> None:
        """Throw away the stages of a shard that its records do not lead to."""
        for name in set(self._chains.get(shard, ())) - set(names):
            del self._stages[name]
        self._chains[shard] = names
        self._heads.pop(shard, None)
        if filled:
            self._heads[shard] = names[-1]

    def _stage(self, before: HeadStage | None, members: Records, shard: int, part: int) -> HeadStage:
        """Train a head on its first slices, from the stage before."""
        config, shape = self.config, (self.records.codes.shape[1] + 1, self.classes)
        weights, velocity = (np.zeros(shape), np.zeros(shape)) if before is None else map(np.copy, before)
        inputs, targets = _inputs(members.codes), np.eye(self.classes)[members.labels]
        starts = range(0, len(members), config.batch_size)
        steps = config.stage_epochs * len(starts)
        for epoch in range(config.stage_epochs):
            order = keyed_order(members.ids, config.seed, shard, part, epoch)
            for number, start in enumerate(starts, epoch * len(starts)):
                rows = order[start : start + config.batch_size]
                batch = inputs[rows]
                gradient = batch.T @ (_softmax(batch @ weights) - targets[rows]) / len(rows)
                velocity = config.momentum * velocity + gradient + config.penalty / len(members) * weights
                weights = weights - config.learning_rate * (1 - number / steps) * velocity
        self.visits += config.stage_epochs * len(members)
        return HeadStage(weights, velocity)


def _places(ids: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
    """Return a number below `count` for every record, int64 ``(n,)``, by its id alone."""
    return np.array([derive_seed(seed, purpose, row.tobytes()) % count for row in ids], dtype=np.int64)


def _inputs(codes: np.ndarray) -> np.ndarray:
    """Return standardised features with a constant behind them, float64 ``(n, features + 1)``."""
    return np.hstack([codes / STEPS, np.ones((len(codes), 1))])


def _softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
