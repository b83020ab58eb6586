from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_benchmark import FINE_TUNE, RANDOM, TINY, tiny_recipe

from gen_unlearn.benchmark.recipe import load_benchmark
from gen_unlearn.benchmark.runner import planned

CONFIG = Path(__file__).parents[2] / "configs" / "benchmarks" / "digits_classification.yaml"
MEMORISED = {"name": "memorised", "choose": {"kind": "memorised", "fraction": 0.1}}
CANARY = {"name": "canary", "choose": {"kind": "canary", "count": 10}}


def test_the_recipe_that_is_shipped_is_read_and_written_back(tmp_path: Path) -> None:
    recipe = load_benchmark(CONFIG, ["seeds=3", "search.trials=0"])
    assert (recipe.seeds, recipe.search.trials) == (3, 0)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    again = load_benchmark(tmp_path / "again.yaml")
    assert (again, again.digest) == (recipe, recipe.digest)
    assert load_benchmark(CONFIG).digest != recipe.digest


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("methodz",), [], "unknown key methodz; did you mean methods"),
        (("search", "trails"), 3, r"unknown key search.trails; did you mean trials"),
        (("methods", 0, "setings"), {}, r"unknown key methods\[0\].setings; did you mean settings"),
        (("methods", 0, "settings"), {"lrr": 1}, "unknown key lrr; did you mean lr"),
        (("methods", 0, "settings"), {"lr": -1.0}, "expected lr above 0"),
        (("methods", 0, "settings"), {"lr": float("inf")}, "lr must be finite"),
        (("methods", 0, "method"), "fine-tun", "did you mean fine-tune"),
        (("methods", 0, "sets"), ["class 4"], "expected sets among random, class 3, got class 4"),
        (("methods", 0, "name"), "neggrad-plus", "got neggrad-plus twice"),
        (("methods", 0, "name"), "retrained", "retrained is the name of a reference model"),
        (("forget_sets", 0, "name"), "class 3", "got class 3 twice"),
        (("forget_sets", 0, "choose", "cout"), 3, r"unknown key forget_sets\[0\].choose.cout"),
        (("forget_sets", 0, "choose", "kind"), "rare", "rare"),
        (("forget_sets",), [], "expected at least one of forget_sets"),
        (("measure", "table"), ["acc.forgotten"], "acc.forgotten"),
        (("measure", "scores"), ["guess"], "guess"),
        (("search", "rule"), "best", "best"),
        (("seeds",), 0, "at least 1"),
        (("seeds",), True, "seeds is not a switch"),
        (("cap",), 0, "expected a cap above 0"),
    ],
)
def test_mistakes_are_told_in_one_line(
    place: tuple[Any, ...], value: object, message: str, tmp_path: Path
) -> None:
    content = copy.deepcopy(TINY)
    inner: Any = content
    for key in place[:-1]:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else inner[key]
    inner[place[-1]] = value
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message) as caught:
        load_benchmark(path)
    assert "\n" not in str(caught.value)
    assert "wrong.yaml" in str(caught.value)


def test_what_is_planned_is_counted() -> None:
    assert planned(tiny_recipe()) == {"models": 2 + 2 * 4, "trials": 0, "rows": 2 * 2 * (3 + 3)}
    once = [{"method": "fine-tune", "sets": ["random"]}, {"method": "scrub"}]
    search = {"trials": 5, "pilot_seeds": 3}
    of_both = planned(tiny_recipe(methods=once, search=search, unlearn_seeds=2))
    assert of_both == {"models": 2 + 3 + 2 * (4 + 3), "trials": 3 * 5 * 3, "rows": 2 * (2 * 3 + 3 * 2)}


def test_models_that_score_and_originals_of_their_own_are_counted() -> None:
    assert planned(tiny_recipe(forget_sets=[*RANDOM, MEMORISED]))["models"] == 2 + 2 * 4 + 32
    assert planned(tiny_recipe(forget_sets=[CANARY]))["models"] == 2 + 4
    assert planned(tiny_recipe(forget_sets=[*RANDOM, CANARY], methods=FINE_TUNE))["models"] == 2 * 2 + 2 * 4
