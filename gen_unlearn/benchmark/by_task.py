"""Benchmarks of classifiers and of generators, told apart by the key ``task`` of their recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gen_unlearn.benchmark.generation.recipe import GenerationRecipe
from gen_unlearn.benchmark.generation.runner import planned_generation, run_generation_benchmark
from gen_unlearn.benchmark.recipe import BenchmarkRecipe
from gen_unlearn.benchmark.runner import planned, run_benchmark
from gen_unlearn.benchmark.summary import BenchmarkSummary
from gen_unlearn.recipes import read_recipe, validated

AnyRecipe = BenchmarkRecipe | GenerationRecipe


def load_any(path: Path, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read the recipe of a benchmark, of classifiers unless it says ``task: generation``.

    Raises:
        ValueError: the file or an override is not a valid recipe; the message names the key.
    """
    content = read_recipe(path, overrides)
    kind = GenerationRecipe if content.get("task") == "generation" else BenchmarkRecipe
    recipe: AnyRecipe = validated(kind, content, str(path))
    return recipe


def plan_any(recipe: AnyRecipe) -> dict[str, int]:
    """Return how much a benchmark computes."""
    return planned_generation(recipe) if isinstance(recipe, GenerationRecipe) else planned(recipe)


def run_any(recipe: AnyRecipe, out: Path) -> BenchmarkSummary:
    """Run a benchmark, or what is missing of it, see `run_benchmark` and `run_generation_benchmark`."""
    if isinstance(recipe, GenerationRecipe):
        return run_generation_benchmark(recipe, out)
    return run_benchmark(recipe, out)
