"""Classifiers on encoded images that images can be deleted from: what the comparison compares.

Each is a function of the records that are left; `System.fresh` fits it again to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from evaluation.encoded_images import EncodedImages
from evaluation.sisa import Sisa, SisaConfig
from evaluation.timing import seconds_of
from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.family import AdapterFamily, FitJob, HeadShape, Subtractable, digest_adapter
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import LARGEST_CODE, STEPS, Records
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.routing import Keys, public_keys
from gen_unlearn.adapters.sgd import SgdHeads
from gen_unlearn.forget import ForgetSet
from gen_unlearn.repro import among, digest_arrays, keyed_order, numpy_generator


class Cost(NamedTuple):
    """What a deletion took: seconds, and how often records were read."""

    seconds: float
    visits: int


class System(Protocol):
    """A classifier that images can be deleted from."""

    records: Records

    def delete(self, ids: np.ndarray) -> Cost:
        """Delete the images with some ids, uint8 ``(m, 16)``, sorted."""

    def scores(self, codes: np.ndarray) -> np.ndarray:
        """Map codes, int16 ``(n, features)``, to scores of the classes, float64 ``(n, classes)``."""

    def fresh(self) -> System:
        """Fit the same to the records that are left."""

    def parts(self) -> dict[str, str]:
        """Digest of each part that was fit by itself and has members, by its name."""

    def facts(self) -> dict[str, float]:
        """Return sizes: ``parameters``, ``bytes`` that are kept to delete with, and what else there is."""


class EnsembleSystem:
    """The adapter ensemble."""

    def __init__(
        self,
        recipe: EnsembleRecipe,
        records: Records,
        again: Callable[[Records], EnsembleSystem],
        sources: np.ndarray | None = None,
    ) -> None:
        """Fit it.

        Args:
            recipe: what it is made of.
            records: what it is fit on.
            again: makes the same of other records, with keys of its own.
            sources: ids of the images that keys were made from, if they can be deleted.
        """
        self.ensemble, self.sources, self._again = AdapterEnsemble.fit(recipe, records), sources, again

    @property
    def records(self) -> Records:
        """What is left."""
        return self.ensemble.left[0]

    def delete(self, ids: np.ndarray) -> Cost:
        """Delete images; a family that subtracts reads these alone, another all members that are left."""
        ensemble, family = self.ensemble, self.ensemble.recipe.family
        forget = ForgetSet(ids, "comparison")
        touched = ensemble.touched(forget)
        before = sum(len(ensemble.members[adapter]) for adapter in touched.tolist())
        seconds = seconds_of(lambda: ensemble.delete(forget))
        left = [len(ensemble.members[adapter]) for adapter in touched.tolist()]
        if isinstance(family, Subtractable):
            return Cost(seconds, before - sum(left))
        return Cost(seconds, sum(family.visits(members) for members in left))

    def scores(self, codes: np.ndarray) -> np.ndarray:
        """Average the adapters with the nearest keys."""
        return self.ensemble.scores(codes).scores

    def fresh(self) -> EnsembleSystem:
        """Fit the same to the records that are left."""
        return self._again(self.records)

    def parts(self) -> dict[str, str]:
        """Digest of each adapter with members, by its key."""
        keys = self.ensemble.recipe.keys.codes
        return {
            keys[adapter].tobytes().hex(): digest_adapter(state)
            for adapter, state in self.ensemble.states.items()
        }

    def facts(self) -> dict[str, float]:
        """Return sizes, the members of adapters, their imbalance, and keys of deleted images."""
        recipe, left = self.ensemble.recipe, self.ensemble.ids
        sizes = np.array([len(rows) for rows in self.ensemble.members.values()])
        kept = sum(array.nbytes for state in self.ensemble.states.values() for array in state.values())
        found = {
            "parameters": float(sum(_parameters(state) for state in self.ensemble.states.values())),
            "bytes": float(kept + self.ensemble.records.codes.nbytes),
            "fewest members": float(sizes.min()),
            "median members": float(np.median(sizes)),
            "most members": float(sizes.max()),
            "imbalance": float(len(sizes) * (sizes**2.0).sum() / sizes.sum() ** 2),
            "expected adapters per deletion": float(recipe.neighbours),
        }
        if self.sources is not None:
            found["keys of deleted images"] = float((~among(self.sources, left)).sum())
        return found


class SisaSystem:
    """SISA; with one shard and one slice, retraining a linear layer for each deletion."""

    def __init__(self, config: SisaConfig, records: Records, classes: int) -> None:
        self.sisa = Sisa(config, records, classes)

    @property
    def records(self) -> Records:
        """What is left."""
        return self.sisa.records

    def delete(self, ids: np.ndarray) -> Cost:
        """Delete images, and train the shards that held them from the slice on."""
        before = self.sisa.visits
        seconds = seconds_of(lambda: self.sisa.delete(ids))
        return Cost(seconds, self.sisa.visits - before)

    def scores(self, codes: np.ndarray) -> np.ndarray:
        """Average the probabilities of all heads."""
        return self.sisa.probabilities(codes)

    def fresh(self) -> SisaSystem:
        """Train the same on the records that are left."""
        return SisaSystem(self.sisa.config, self.records, self.sisa.classes)

    def parts(self) -> dict[str, str]:
        """Digest of each head."""
        return {str(shard): digest for shard, digest in self.sisa.heads.items()}

    def facts(self) -> dict[str, float]:
        """Return sizes, and the expected visits of a random deletion."""
        config, left = self.sisa.config, self.records
        head = (left.codes.shape[1] + 1) * self.sisa.classes
        stages = 16 * head * len(self.sisa.kept_stages)
        return {
            "parameters": float(config.shards * head),
            "bytes": float(stages + left.codes.nbytes),
            "expected visits": config.expected_visits(len(left)),
        }


class RefitSystem:
    """One ridge head that is fit again to all records after each deletion."""

    def __init__(self, family: RidgeHeads, records: Records, classes: int) -> None:
        self.family, self.records, self.classes = family, records, classes
        self._fit()

    def _fit(self) -> None:
        shape = HeadShape(self.records.codes.shape[1], self.classes)
        (self._state,) = self.family.fit([FitJob(0, self.records)], shape, 0)

    def delete(self, ids: np.ndarray) -> Cost:
        """Delete images and fit again."""

        def work() -> None:
            self.records = self.records.select(~among(self.records.ids, ids))
            self._fit()

        return Cost(seconds_of(work), len(self.records))

    def scores(self, codes: np.ndarray) -> np.ndarray:
        """Ask the head."""
        return self.family.scores(self._state, codes)

    def fresh(self) -> RefitSystem:
        """Fit the same to the records that are left."""
        return RefitSystem(self.family, self.records, self.classes)

    def parts(self) -> dict[str, str]:
        """Digest of the head."""
        return {"0": digest_arrays(self._state["weights"])}

    def facts(self) -> dict[str, float]:
        """Return sizes."""
        return {"parameters": float(_parameters(self._state)), "bytes": float(self.records.codes.nbytes)}


@dataclass(frozen=True)
class EnsembleSetting:
    """An ensemble of `adapters` adapters, `neighbours` of which answer.

    Attributes:
        images: what keys come from.
        family: the kind of adapter, but for its penalty.
        adapters: how many there are.
        neighbours: adapters of an image.
        noise: None for public keys; else keys as they were published, encodings of deletable images with
            normal noise of so many standard deviations of a feature.
    """

    images: EncodedImages
    family: AdapterFamily
    adapters: int
    neighbours: int
    noise: float | None = None

    def build(self, records: Records, penalty: float, seed: int) -> EnsembleSystem:
        """Fit the ensemble with a penalty: that of ridge heads, or the weight decay of others."""
        family, sources = _penalised(self.family, penalty), None
        if self.noise is None:
            public = self.images.public
            keys = public_keys(public.codes, public.ids, self.adapters, "public-samples", seed)
        else:
            chosen = keyed_order(records.ids, seed, "sources of keys")[: self.adapters]
            keys, sources = _noised(records.select(chosen), self.noise, seed), records.ids[chosen]
        recipe = EnsembleRecipe(keys, family, self.neighbours, self.images.class_names, seed)
        return EnsembleSystem(recipe, records, lambda left: self.build(left, penalty, seed), sources)

    def matched(self, share: float) -> EnsembleSetting:
        """Return the setting with about as many members per adapter, for so small a share of the records."""
        fewer = max(min(self.adapters, 2 * self.neighbours), round(share * self.adapters))
        return replace(self, adapters=fewer, noise=None)


@dataclass(frozen=True)
class SisaSetting:
    """SISA with a penalty and a seed still to choose."""

    config: SisaConfig
    classes: int

    def build(self, records: Records, penalty: float, seed: int) -> SisaSystem:
        """Train it."""
        return SisaSystem(replace(self.config, penalty=penalty, seed=seed), records, self.classes)

    def matched(self, share: float) -> SisaSetting:
        """Return the setting with about as many records per shard, for so small a share of the records."""
        fewer = max(1, round(share * self.config.shards))
        return replace(self, config=replace(self.config, shards=fewer))


@dataclass(frozen=True)
class RefitSetting:
    """One ridge head for all records, with a penalty still to choose."""

    classes: int

    def build(self, records: Records, penalty: float, seed: int) -> RefitSystem:  # noqa: ARG002
        """Fit it; nothing is random."""
        return RefitSystem(RidgeHeads(penalty), records, self.classes)

    def matched(self, share: float) -> RefitSetting:  # noqa: ARG002
        """Return the same."""
        return self


Setting = EnsembleSetting | SisaSetting | RefitSetting


def _penalised(family: AdapterFamily, penalty: float) -> AdapterFamily:
    if isinstance(family, RidgeHeads):
        return replace(family, penalty=penalty)
    assert isinstance(family, SgdHeads)
    return replace(family, weight_decay=penalty)


def _noised(sources: Records, noise: float, seed: int) -> Keys:
    """Return keys near encodings of images that can be deleted."""
    features = sources.codes.shape[1]
    draws = [numpy_generator(seed, "noise of keys", row.tobytes()) for row in sources.ids]
    moved = sources.codes + STEPS * noise * np.stack([draw.standard_normal(features) for draw in draws])
    return Keys(np.rint(moved).clip(-LARGEST_CODE, LARGEST_CODE).astype(np.int16), "training-samples")


def _parameters(state: object) -> int:
    """Return how many numbers of an adapter answer: all of its weights, and not its sums."""
    assert isinstance(state, dict)
    return sum(array.size for name, array in state.items() if name.endswith("weights"))
