"""Everything that a forget set of generators needs before a method can run: images, judge, models, pilots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from gen_unlearn.benchmark.forget_sets import ForgetCase, draw_forget_set
from gen_unlearn.benchmark.generation.designs import core_of, design_recipe
from gen_unlearn.benchmark.generation.generators import GeneratorPool
from gen_unlearn.benchmark.generation.observation import MeasuredCase
from gen_unlearn.benchmark.generation.recipe import GenerationForgetEntry, GenerationRecipe
from gen_unlearn.benchmark.prepared_sets import PILOT
from gen_unlearn.benchmark.splits import Splits, build_splits
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED
from gen_unlearn.benchmark.trained_models import Role
from gen_unlearn.data import load_images, load_split
from gen_unlearn.judging.evidence import Measurer, Recogniser
from gen_unlearn.metrics.extractors.choice import load_extractor
from gen_unlearn.processes import process_state
from gen_unlearn.repro import digest_json
from gen_unlearn.training.classifier import JudgeFeatures, train_judge


@dataclass(frozen=True, eq=False)
class PreparedGenerators:
    """One forget set with its images and generators.

    Attributes:
        entry: as in the recipe.
        measured: the images, and what generators are measured with.
        pools: originals, and retrained generators: a ring, see `next_seed`.
        pilots: the same of other seeds, for the search.
    """

    entry: GenerationForgetEntry
    measured: MeasuredCase
    pools: Mapping[Role, GeneratorPool]
    pilots: Mapping[Role, GeneratorPool]

    @property
    def case(self) -> ForgetCase:
        """The images."""
        return self.measured.case

    def next_seed(self, seed: int) -> int:
        """Return the seed whose retrained model is the second one of a seed: the next, the first of the last.

        Both are trained alike and share nothing, so that their distance is a floor. But each is in two of
        these distances, which are therefore not independent of each other.
        """
        ring = self.pools[RETRAINED].seeds
        return ring[(ring.index(seed) + 1) % len(ring)]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all images, how often each is trained on, and what is to be forgotten."""
        return digest_json([self.case.splits.digest, self.case.forget.digest, self.case.retain_images.digest])


def load_splits(recipe: GenerationRecipe) -> Splits:
    """Return the images of a benchmark; the split's own are for testing if it asks for a number of them."""
    data = recipe.generator.data
    if recipe.split.test:
        return build_splits(load_images(data), recipe.split)
    found = load_split(data)
    return build_splits(found.train, recipe.split, found.test)


def prepare_generators(recipe: GenerationRecipe) -> tuple[PreparedGenerators, ...]:
    """Return all forget sets of a benchmark, with generators that are yet to be trained.

    The judge is trained here, on all training images, as in the evaluation of a run.
    """
    splits, config = load_splits(recipe), recipe.generator.evaluation
    train, device = splits.train, process_state().device
    judge = train_judge(
        train.all_images(), train.labels, len(train.class_names), config.judge, config.judge_seed, device
    )
    if config.features == "judge":
        measurer = Measurer(JudgeFeatures(judge, "the training images of the benchmark"))
    else:
        weights = None if config.weights is None else Path(config.weights).expanduser()
        measurer = Measurer(load_extractor(config.features, weights, device))
    counts: dict[Role, int] = {ORIGINAL: recipe.seeds, RETRAINED: recipe.retrained_seeds}
    pilots = recipe.search.pilot_seeds if recipe.search.trials else 0

    def prepared(entry: GenerationForgetEntry) -> PreparedGenerators:
        case = _draw(entry, recipe, splits)
        measured = MeasuredCase(case, Recogniser(judge), measurer, recipe.measure, recipe.generator.sampling)
        return PreparedGenerators(
            entry,
            measured,
            {role: _pool(role, case, recipe, 0, count) for role, count in counts.items()},
            {role: _pool(role, case, recipe, PILOT, pilots) for role in counts if pilots},
        )

    return tuple(prepared(entry) for entry in recipe.forget_sets)


def _draw(entry: GenerationForgetEntry, recipe: GenerationRecipe, splits: Splits) -> ForgetCase:
    """Choose what is forgotten, and repeat it among the training images."""
    candidates = splits
    if entry.outside_core_of is not None:
        design = design_recipe(recipe.generator, recipe.design(entry.outside_core_of))
        candidates = replace(splits, train=splits.train.select(~core_of(design, splits.train)))
    chosen = draw_forget_set(entry.choose, candidates, entry.seed)
    train = splits.train
    counts = np.where(chosen.forget.mask(train.ids), entry.repeats, 1)
    repeated = replace(splits, train=train.select(np.repeat(np.arange(len(train)), counts)))
    return replace(chosen, splits=repeated)


def _pool(role: Role, case: ForgetCase, recipe: GenerationRecipe, first: int, count: int) -> GeneratorPool:
    data = case.splits.train if role == ORIGINAL else case.retain_images
    seeds = tuple(first + recipe.seed + seed for seed in range(count))
    return GeneratorPool(role, data, recipe.generator, seeds)
