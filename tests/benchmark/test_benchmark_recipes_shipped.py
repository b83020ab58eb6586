"""The recipes of benchmarks that come with the project: all load, and are explained."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from gen_unlearn.benchmark.by_task import load_any, plan_any
from gen_unlearn.benchmark.generation.recipe import GenerationRecipe
from gen_unlearn.benchmark.recipe import BenchmarkRecipe, load_benchmark
from gen_unlearn.methods.classification.table import METHODS

ROOT = Path(__file__).parents[2]
EXPLAINED = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "configs" / "benchmarks").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_benchmark_recipe_loads_and_survives_being_written(path: Path, tmp_path: Path) -> None:
    recipe = load_any(path)
    plan = plan_any(recipe)
    assert plan["models"] > 0
    assert plan["rows"] > 0
    written = tmp_path / "recipe.yaml"
    written.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_any(written) == recipe
    assert load_any(written).digest == recipe.digest
    assert path.read_text(encoding="utf-8").startswith("# "), "says what it is"


def test_configs_readme_names_all_benchmark_recipes_and_no_others() -> None:
    named = set(re.findall(r"`benchmarks/([a-z0-9_]+\.yaml)`", EXPLAINED))
    assert named == {path.name for path in RECIPES}
    assert len(named) >= 4


@pytest.mark.parametrize(
    ("heading", "kind"),
    [("## Recipes of benchmarks", BenchmarkRecipe), ("## Benchmarks of generators", GenerationRecipe)],
)
def test_configs_readme_explains_every_key_of_a_benchmark(heading: str, kind: type) -> None:
    section = EXPLAINED.partition(f"{heading}\n")[2].partition("\n## ")[0]
    explained = {
        re.split(r"[.\[]", key)[0] for key in re.findall(r"^\| `([a-z_.\[\]]+)`", section, re.MULTILINE)
    }
    assert explained == {entry.name for entry in fields(kind)}


def test_readme_lists_every_method() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    listed = readme.partition("Methods: ")[2].partition(". Each is")[0]
    assert sorted(re.findall(r"`([a-z0-9-]+)`", listed)) == sorted(METHODS)


def test_the_optml_recipe_is_the_published_protocol() -> None:
    recipe = load_benchmark(ROOT / "configs" / "benchmarks" / "cifar10_resnet18_optml.yaml")
    training = recipe.training
    assert (training.epochs, training.batch_size, training.weight_decay) == (182, 256, 5e-4)
    assert [training.rate(epoch) for epoch in (0, 90, 91, 135, 136, 181)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )
    assert recipe.split.heldout == 5000
    assert recipe.data.test_source is not None
    assert [one.choose.fraction for one in recipe.forget_sets] == [0.1, 0.5, None]
    assert len({entry.method for entry in recipe.methods}) >= 28
