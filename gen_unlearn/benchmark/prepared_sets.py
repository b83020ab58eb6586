"""Everything that a forget set of a benchmark needs before a method can run: images, models, pilots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from gen_unlearn.benchmark.designs import public_core
from gen_unlearn.benchmark.forget_sets import ForgetCase, ForgetSetConfig, draw_forget_set
from gen_unlearn.benchmark.memorisation import (
    MemorisationScores,
    pool_memorisation,
    read_scores,
    write_scores,
)
from gen_unlearn.benchmark.predictions import MeasuredSets
from gen_unlearn.benchmark.recipe import BenchmarkRecipe, ForgetEntry
from gen_unlearn.benchmark.splits import Splits, build_splits
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED, SECOND_RETRAINED
from gen_unlearn.benchmark.trained_models import ModelPool, Role
from gen_unlearn.data import load_images, load_split
from gen_unlearn.repro import digest_json

ROLES: tuple[Role, ...] = (ORIGINAL, RETRAINED, SECOND_RETRAINED)

PILOT = 1_000_000
"""Training seeds of pilots are this much larger than those of reported models."""

MEMORISATION_MODELS = 32
"""Models that score how far images are memorised."""


@dataclass(frozen=True, eq=False)
class PreparedSet:
    """One forget set with its images and models.

    Attributes:
        entry: as in the recipe.
        case: the images.
        sets: what models are measured on.
        pools: the models of each role.
        pilots: models of other seeds, for the search; there is no second retrained one.
    """

    entry: ForgetEntry
    case: ForgetCase
    sets: MeasuredSets
    pools: Mapping[Role, ModelPool]
    pilots: Mapping[Role, ModelPool]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all images, their labels, and what is to be forgotten."""
        measured = {name: images.digest for name, images in self.sets.images.items()}
        return digest_json([self.case.splits.digest, self.case.forget.digest, measured])


def needs_scores(choose: ForgetSetConfig) -> bool:
    """Return whether images are chosen by how far models memorise them, which must be trained first."""
    return choose.kind == "memorised" and choose.path is None


def load_splits(recipe: BenchmarkRecipe) -> Splits:
    """Return the images of a benchmark."""
    if recipe.data.test_source is None:
        return build_splits(load_images(recipe.data), recipe.split)
    found = load_split(recipe.data)
    return build_splits(found.train, recipe.split, found.test)


def prepare_sets(recipe: BenchmarkRecipe, out: Path) -> tuple[PreparedSet, ...]:
    """Return all forget sets of a benchmark, with models that are yet to be trained.

    Args:
        recipe: the benchmark.
        out: folder of the benchmark, where scores of memorisation are kept.
    """
    splits = load_splits(recipe)
    return tuple(_prepare(entry, recipe, splits, out) for entry in recipe.forget_sets)


def _prepare(entry: ForgetEntry, recipe: BenchmarkRecipe, splits: Splits, out: Path) -> PreparedSet:
    scores = None
    if needs_scores(entry.choose):
        scores = _scores(recipe, splits, out)
    case = _draw(entry, splits, scores)
    seeds = tuple(recipe.seed + seed for seed in range(recipe.seeds))
    pilots = tuple(PILOT + recipe.seed + seed for seed in range(recipe.search.pilot_seeds))
    return PreparedSet(
        entry,
        case,
        MeasuredSets.of(case, recipe.measure.retained_images),
        {role: _pool(role, case, recipe, seeds) for role in ROLES},
        {role: _pool(role, case, recipe, pilots) for role in ROLES[:2]} if recipe.search.trials else {},
    )


def _draw(entry: ForgetEntry, splits: Splits, scores: MemorisationScores | None) -> ForgetCase:
    """Choose what is forgotten, if need be among the images outside of a public core."""
    if not entry.outside_core:
        return draw_forget_set(entry.choose, splits, entry.seed, scores)
    outside = splits.train.select(~public_core(splits.train, entry.outside_core))
    candidates = replace(splits, train=outside, mislabelled=splits.mislabelled[:0])
    return replace(draw_forget_set(entry.choose, candidates, entry.seed), splits=splits)


def _pool(role: Role, case: ForgetCase, recipe: BenchmarkRecipe, seeds: tuple[int, ...]) -> ModelPool:
    data = case.splits.train if role == ORIGINAL else case.retain_images
    return ModelPool(role, data, recipe.network, recipe.training, seeds)


def _scores(recipe: BenchmarkRecipe, splits: Splits, out: Path) -> MemorisationScores:
    """Score every training image by models that saw it and models that did not, or find the scores."""
    decisive = [splits.train.digest, asdict(recipe.network), asdict(recipe.training), recipe.seed]
    path = out / "memorisation" / f"{digest_json(decisive)}.json"
    if not path.is_file():
        scores = pool_memorisation(
            splits.train, recipe.network, recipe.training, MEMORISATION_MODELS, recipe.seed
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_scores(path, scores)
    return read_scores(path)
