"""What a deletion from the model of a recipe promises."""

from __future__ import annotations

from collections.abc import Collection

from gen_unlearn.adapters.ensemble import ARTEFACT
from gen_unlearn.adapters.family import HeadShape
from gen_unlearn.adapters.promise import promised_level
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.config import Recipe
from gen_unlearn.receipts import Level, promise_of


def promise_of_recipe(
    recipe: Recipe,
    waiting: bool = False,
    environments: Collection[str] | None = None,
    shape: HeadShape | None = None,
) -> tuple[str, Level]:
    """Return what a deletion from a model with exemplars changes, and the level of its promise.

    Args:
        recipe: of the model.
        waiting: whether an adapter of an ensemble waits to be rebuilt.
        environments: digests of where the adapters were fit; by default all were here.
        shape: sizes of the adapters, where they are known.
    """
    if isinstance(recipe, ClassifierRunConfig) and recipe.model.kind == "adapter-ensemble":
        adapters = recipe.model.adapters
        return ARTEFACT, promised_level(adapters.keys, adapters.heads, waiting, environments, shape)
    return promise_of(recipe.task, recipe.core.mode)
