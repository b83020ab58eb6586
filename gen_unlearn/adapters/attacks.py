"""Attacks on adapter ensembles: whose images are the keys, what was deleted, and requests that look first.

Who has a ridge adapter before and after a deletion can look for what was deleted. With the deleted images `X`
and their classes `Y`, one-hot, weights `W` before and `V` after, and ``A = Σ x xᵀ + penalty`` before,

    A (W - V) = Xᵀ (Y - X V).

The attacker estimates `A` from public images, and knows the rest of the left side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.family import WEIGHTS, FitJob
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import LARGEST_CODE, STEPS, Records
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.routing import Keys, members_of, route
from gen_unlearn.forget import ForgetSet
from gen_unlearn.metrics.auc import Interval, Stratum, area_under_curve
from gen_unlearn.metrics.estimate import Estimate, proportion
from gen_unlearn.repro import numpy_generator

Attack = Literal["subspace", "residuals", "influence"]

ATTACKS: tuple[Attack, ...] = get_args(Attack)

_NO_DIRECTION = 1e-9
"""Singular values below this share of the largest are rounding."""


def training_keys(codes: np.ndarray, count: int, noise: float, seed: int) -> tuple[Keys, np.ndarray]:
    """Make keys as published: encodings of deletable images with a little noise, to be attacked.

    Args:
        codes: of the deletable images, int16 ``(n, features)``.
        count: number of keys.
        noise: standard deviation, in those of the features among public images.
        seed: of the choice and the noise.

    Returns:
        The keys, and the rows they were made from, int64 ``(count,)``.
    """
    draw = numpy_generator(seed, "training keys")
    rows = draw.choice(len(codes), count, replace=False)
    noised = np.rint(codes[rows] + STEPS * noise * draw.standard_normal((count, codes.shape[1])))
    return Keys(noised.clip(-LARGEST_CODE, LARGEST_CODE).astype(np.int16), "training-samples"), rows


def key_source_area(keys: Keys, members: np.ndarray, outsiders: np.ndarray) -> tuple[Estimate, Interval]:
    """Measure how well the distance to the nearest key tells members from images that were never seen.

    Args:
        keys: of the ensemble.
        members: codes, int16 ``(m, features)``.
        outsiders: codes, int16 ``(n, features)``.

    Returns:
        The area under the ROC curve and its 95 % interval: around 0.5 if the keys say nothing of members.
    """
    return area_under_curve([Stratum(closeness(members, keys), closeness(outsiders, keys))])


def closeness(codes: np.ndarray, keys: Keys) -> np.ndarray:
    """Return minus the distance of codes, int16 ``(n, features)``, to their nearest key, float64 ``(n,)``."""
    nearest = keys.codes[route(codes, keys, 1)[:, 0]].astype(np.int64)
    return -np.sqrt(((codes - nearest) ** 2).sum(axis=1))


@dataclass(frozen=True, eq=False)
class RidgeView:
    """What an attacker has of one ridge adapter that was released before and after a deletion.

    Attributes:
        before: weights, float64 ``(features + 1, classes)``.
        after: the same after the deletion.
        penalty: of the family.
        members: how many records the adapter had before.
        public: public records that are routed to the adapter; may be empty.
        everywhere: all public records, at least one.
    """

    before: np.ndarray
    after: np.ndarray
    penalty: float
    members: int
    public: Records
    everywhere: Records

    @cached_property
    def matrix(self) -> np.ndarray:
        """Estimate of ``Σ x xᵀ + penalty`` before, from public records, float64.

        Those routed to the adapter count with as many records from everywhere as there are features, which
        stand in where few are routed there. The mean of the public members is in it: one of the coordinates
        of `x` is 1.
        """
        routed, everywhere = _extended(self.public.codes), _extended(self.everywhere.codes)
        prior = everywhere.shape[1]
        moment = (routed.T @ routed + prior / len(everywhere) * everywhere.T @ everywhere) / (
            len(routed) + prior
        )
        return np.asarray(self.members * moment + self.penalty * np.eye(prior))

    def scores(self, candidates: Records, attack: Attack) -> np.ndarray:
        """Score candidates, higher for those likelier to be among the deleted records, float64 ``(n,)``.

        Args:
            candidates: records that may have been deleted.
            attack: ``"subspace"`` reconstructs directions: how much of a candidate lies in the span of
                ``A (W - V)``, both whitened. ``"residuals"`` needs no data: how much of the candidate's
                ``y - Vᵀ x`` lies in the span of the rows of ``W - V``, which is all of it for what was
                deleted, as long as that was a few less than the classes. ``"influence"`` asks how much of
                ``x (y - Vᵀ x)ᵀ`` is in ``A (W - V)``, whitened on both sides.
        """
        change = self.before - self.after
        inputs = _extended(candidates.codes)
        residuals = self._residuals(candidates)
        if attack == "residuals":
            return _share_within(residuals, change.T)
        lower = np.linalg.cholesky(self.matrix)
        inputs, moved = np.linalg.solve(lower, inputs.T).T, lower.T @ change
        if attack == "subspace":
            return _share_within(inputs, moved)
        known = self._residuals(self.everywhere)
        spread = known.T @ known / len(known)
        spread += 1e-3 * np.trace(spread) / len(spread) * np.eye(len(spread))
        lower = np.linalg.cholesky(spread)
        residuals = np.linalg.solve(lower, residuals.T).T
        found = np.einsum("nf,fc,nc->n", inputs, np.linalg.solve(lower, moved.T).T, residuals)
        sizes = np.linalg.norm(inputs, axis=1) * np.linalg.norm(residuals, axis=1)
        return np.asarray(found / np.maximum(sizes, np.finfo(float).tiny))

    def _residuals(self, records: Records) -> np.ndarray:
        classes = np.eye(self.after.shape[1])[records.labels]
        return np.asarray(classes - _extended(records.codes) @ self.after)


def rank_of_first(scores: np.ndarray) -> int:
    """Return the rank of the first of some candidates by their scores, 1 for the highest; ties rank worse."""
    return int((scores >= scores[0]).sum())


def first_rank_rates(
    recipe: EnsembleRecipe,
    records: Records,
    public: Records,
    unseen: Records | None,
    *,
    batch: int,
    trials: int,
    seed: int,
    candidates: int = 20,
) -> dict[Attack, Estimate]:
    """Measure how often each attack ranks a deleted record first among candidates; chance is 1 / candidates.

    In each trial a random adapter loses a random batch of its members, and one of them hides among records
    that were not deleted.

    Args:
        recipe: of ridge heads.
        records: what the ensemble is fit on.
        public: what the attacker knows.
        unseen: where the other candidates come from, those that are routed to the same adapter; `None`
            takes members that are kept.
        batch: deletions between the two releases of an adapter.
        trials: how many.
        seed: of all choices.
        candidates: the deleted record and the others.

    Raises:
        ValueError: another family, or no adapter with enough members and other candidates.
    """
    family = recipe.family
    if not isinstance(family, RidgeHeads):
        raise ValueError(f"expected an ensemble of ridge heads, got {type(family).__name__}")
    count, others = len(recipe.keys), candidates - 1
    own, known, outside = (
        members_of(route(part.codes, recipe.keys, recipe.neighbours), count)
        for part in (records, public, records if unseen is None else unseen)
    )
    spare = [len(own[a]) - batch if unseen is None else len(outside[a]) for a in range(count)]
    fit = [a for a in range(count) if len(own[a]) > batch and spare[a] >= others]
    if not fit:
        raise ValueError(
            f"expected an adapter with more than {batch} members and {others} other candidates, got none; "
            f"lower the batch or the number of adapters"
        )
    firsts = dict.fromkeys(ATTACKS, 0)
    for trial in range(trials):
        draw = numpy_generator(seed, "reconstruction", batch, trial)
        adapter = int(draw.choice(fit))
        deleted = draw.choice(own[adapter], batch, replace=False)
        pool = np.setdiff1d(own[adapter], deleted) if unseen is None else outside[adapter]
        decoys = (records if unseen is None else unseen).select(draw.choice(pool, others, replace=False))
        before = family.fit([FitJob(adapter, records.select(own[adapter]))], recipe.shape, recipe.seed)[0]
        after = family.complete(family.update(before, records.select(deleted), -1, recipe.shape))
        view = RidgeView(
            before[WEIGHTS],
            after[WEIGHTS],
            family.penalty,
            len(own[adapter]),
            public.select(known[adapter]),
            public,
        )
        suspects = _joined(records.select(deleted[:1]), decoys)
        for attack in ATTACKS:
            firsts[attack] += rank_of_first(view.scores(suspects, attack)) == 1
    return {attack: proportion(first, trials) for attack, first in firsts.items()}


def most_moved(before: np.ndarray, after: np.ndarray) -> int:
    """Choose the record whose scores the last deletion moved most; see `adaptive_deletions`."""
    return int(np.abs(after - before).sum(axis=1).argmax())


def adaptive_deletions(
    ensemble: AdapterEnsemble,
    choose: Callable[[np.ndarray, np.ndarray], int],
    steps: int,
    asked: Records | None = None,
) -> list[int]:
    """Delete images one by one, each chosen from what the ensemble says after the last deletion.

    What is left must equal a fresh fit of the other records, to the bit, however they were chosen.

    Args:
        ensemble: what is attacked; it is changed.
        choose: maps the scores of the records that are asked about and left, before and after the last
            deletion, both float64 ``(n, classes)``, to the row to delete next.
        steps: deletions, fewer than there are images.
        asked: records of the ensemble that are asked about and deleted from, more images than steps; all by
            default.

    Returns:
        The number of records left after each step.
    """
    records = ensemble.left[0] if asked is None else asked
    before = after = ensemble.scores(records.codes).scores
    left = []
    for _ in range(steps):
        wanted = records.ids[choose(before, after)]
        ensemble.delete(ForgetSet(wanted[None], "chosen from the last output"))
        kept = (records.ids != wanted).any(axis=1)
        records = records.select(kept)
        before, after = after[kept], ensemble.scores(records.codes).scores
        left.append(len(ensemble))
    return left


def _extended(codes: np.ndarray) -> np.ndarray:
    """Return features with a constant 1 behind them, as ridge heads see them, float64."""
    return np.pad(codes / STEPS, ((0, 0), (0, 1)), constant_values=1.0)


def _share_within(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return which share of each row's length lies in the span of the columns, float64 0 to 1."""
    directions, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    directions = directions[:, sizes > _NO_DIRECTION * max(sizes[0], np.finfo(float).tiny)]
    lengths = np.maximum(np.linalg.norm(rows, axis=1), np.finfo(float).tiny)
    return np.asarray(np.linalg.norm(rows @ directions, axis=1) / lengths)


def _joined(first: Records, second: Records) -> Records:
    parts = zip(
        (first.codes, first.labels, first.ids), (second.codes, second.labels, second.ids), strict=True
    )
    return Records(*(np.concatenate(pair) for pair in parts))
