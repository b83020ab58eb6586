"""The recipe of a benchmark of generators: what it takes, and what it counts."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_generation_benchmark import TINY, tiny_generation

from gen_unlearn.benchmark.by_task import load_any, plan_any
from gen_unlearn.benchmark.generation.recipe import GenerationRecipe
from gen_unlearn.benchmark.recipe import BenchmarkRecipe
from gen_unlearn.methods.diffusion.table import METHODS

SEMI_PARAMETRIC = TINY["generator"]["model"] | {"kind": "semi-parametric"}
RECIPES = Path(__file__).parents[2] / "configs" / "benchmarks"


def test_the_task_tells_recipes_apart(tmp_path: Path) -> None:
    generation = load_any(RECIPES / "digits_generation.yaml", ["seeds=2"])
    assert isinstance(generation, GenerationRecipe)
    assert generation.seeds == 2
    assert isinstance(load_any(RECIPES / "digits_classification.yaml"), BenchmarkRecipe)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(TINY | {"task": "translation"}))
    with pytest.raises(ValueError, match="task"):
        load_any(tmp_path / "other.yaml")


@pytest.mark.parametrize("name", ["digits_generation.yaml", "cifar10_generation.yaml"])
def test_the_shipped_recipes_compare_every_method(name: str) -> None:
    recipe = load_any(RECIPES / name)
    assert isinstance(recipe, GenerationRecipe)
    assert {entry.method for entry in recipe.methods} == set(METHODS)
    assert {entry.settings["mixture"] for entry in recipe.methods if entry.method == "siss"} == {
        0.0,
        0.5,
        1.0,
    }
    assert recipe.seeds >= 3
    assert any(entry.repeats > 1 for entry in recipe.forget_sets)


def test_what_is_planned_is_counted() -> None:
    assert plan_any(tiny_generation()) == {"models": 2 + 3 * 2 + 3, "trials": 0, "rows": 3 * (3 + 2) + 1}
    three = plan_any(tiny_generation(seeds=3))
    assert three == {"models": 2 * 3 + 3 * 3 + 2 * 3, "trials": 0, "rows": 3 * (3 * (3 + 2) + 1)}
    searched = tiny_generation(search={"trials": 2, "pilot_seeds": 1}, seeds=2)
    assert plan_any(searched) == {
        "models": 2 * (2 + 1) + 3 * (3 + 1) + (2 + 3),
        "trials": 2 * 2 * 3,
        "rows": 2 * (3 * (3 + 2) + 1),
    }


def changed(**changes: Any) -> dict[str, Any]:
    return deepcopy(TINY) | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds of at least 1"),
        ({"cap": 0.0}, "cap above 0"),
        ({"methods": [{"method": "scrub"}]}, "expected one of the methods"),
        ({"methods": [{"method": "siss", "settings": {"mixture": 2.0}}]}, "mixture"),
        ({"methods": [{"method": "siss"}, {"method": "siss"}]}, "siss twice"),
        ({"methods": [{"method": "siss", "sets": ["class 4"]}]}, "got class 4"),
        ({"split": {"heldout": 10, "wrong_labels": 3}}, "no wrong_labels"),
        ({"designs": []}, "name of one of the designs"),
        ({"generator": TINY["generator"] | {"model": SEMI_PARAMETRIC}}, "class-conditional"),
        ({"forget_sets": [{"name": "a", "choose": {"kind": "canary", "count": 3}}]}, "got canary"),
        ({"forget_sets": [TINY["forget_sets"][1] | {"repeats": 0}]}, "repeats of at least 1"),
        ({"forget_sets": [TINY["forget_sets"][0] | {"outside_core_of": "SPM"}]}, "for random images"),
        ({"search": {"trials": 1, "draws": 0}}, "draws of at least 1"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(**changes)))
    with pytest.raises(ValueError, match=message):
        load_any(path)
