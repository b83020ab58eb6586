"""What a deletion from the model of a recipe promises."""

from __future__ import annotations

from gen_unlearn.adapters.promise import ARTEFACT, masked_level
from gen_unlearn.config import Recipe
from gen_unlearn.receipts import Level, promise_of


def promise_of_recipe(recipe: Recipe) -> tuple[str, Level]:
    """Return what a deletion from a model with exemplars changes, and the level of its promise.

    Of an adapter ensemble it is the level while the adapters that the images were routed to wait to be
    rebuilt; see `gen_unlearn.adapters.promise.promised_level` for what it is afterwards.
    """
    if recipe.model.kind == "adapter-ensemble":
        return ARTEFACT, masked_level(recipe.model.adapters.keys)
    return promise_of(recipe.task, recipe.core.mode)
