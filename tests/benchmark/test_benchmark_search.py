from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from command_line import tree
from tiny_benchmark import RANDOM, tiny_recipe

from gen_unlearn.benchmark import prepared_sets
from gen_unlearn.benchmark.classifier_search import search_settings
from gen_unlearn.benchmark.prepared_sets import PreparedSet, prepare_sets
from gen_unlearn.benchmark.recipe import BenchmarkRecipe
from gen_unlearn.benchmark.search import Searched
from gen_unlearn.benchmark.summary import ORIGINAL

SEARCH = {"trials": 4, "pilot_seeds": 2, "tolerance": 100.0}


def search(out: Path, method: dict[str, Any], **changes: Any) -> Searched:
    recipe, prepared = trained(out, method, **changes)
    return search_settings(recipe.methods[0], prepared, recipe, out, Accelerator(cpu=True))


def trained(out: Path, method: dict[str, Any], **changes: Any) -> tuple[BenchmarkRecipe, PreparedSet]:
    recipe = tiny_recipe(forget_sets=RANDOM, methods=[method], **({"search": SEARCH} | changes))
    (prepared,) = prepare_sets(recipe, out)
    for pool in prepared.pilots.values():
        pool.train(pool.seeds, out / "models", torch.device("cpu"))
    return recipe, prepared


def report(out: Path) -> dict[str, Any]:
    (path,) = (out / "search").iterdir()
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_all_trials_and_doing_nothing_are_kept_and_found_again(tmp_path: Path) -> None:
    method = {"method": "fine-tune", "settings": {"epochs": 1}}
    found = search(tmp_path, method)
    trials = report(tmp_path)["trials"]
    assert [trial["settings"] is None for trial in trials] == [True, False, False, False, False]
    assert found.settings in [{"epochs": 1} | trial["settings"] for trial in trials[1:]]
    assert found.settings["epochs"] == 1, "what the recipe sets is not searched"
    assert 100 * 2 * 4 / 3 * 0.9 < found.passes < 100 * 2 * 4 / 3 * 1.1, (
        "an epoch of three, 2 pilots, 4 trials"
    )
    assert found.seconds > 0
    assert found.failed == 0
    before = tree(tmp_path)
    assert search(tmp_path, method) == found
    assert tree(tmp_path) == before


def test_doing_nothing_wins_over_trials_that_ruin_the_model_and_the_best_of_them_is_taken(
    tmp_path: Path,
) -> None:
    ruin = {"epochs": 5, "lr": 0.3}
    method = {"method": "gradient-ascent", "settings": ruin}
    found = search(tmp_path, method, search=SEARCH | {"rule": "mean_gap"})
    assert found.do_nothing
    assert found.settings.items() >= ruin.items()


def test_failed_trials_are_counted_and_told(tmp_path: Path) -> None:
    found = search(tmp_path, {"method": "fine-tune", "settings": {"epochs": 1}}, cap=1e-6)
    assert found.error is not None
    assert found.error.startswith("all 4 trials failed, the first by BudgetExceededError")
    assert found.failed == 4
    assert all("BudgetExceededError" in trial["error"] for trial in report(tmp_path)["trials"][1:])


def test_some_trials_may_fail(tmp_path: Path) -> None:
    """A cap of half an epoch over which some drawn numbers of epochs go, and others do not."""
    found = search(tmp_path, {"method": "fine-tune"}, search=SEARCH | {"trials": 8}, cap=2.0)
    trials = report(tmp_path)["trials"]
    failed = [trial for trial in trials if trial["levels"] is None]
    assert found.failed == len(failed)
    assert 0 < found.failed < 8
    assert found.error is None
    assert found.settings not in [trial["settings"] for trial in failed]


def test_pilots_share_nothing_with_reported_models(tmp_path: Path) -> None:
    _, prepared = trained(tmp_path, {"method": "fine-tune"})
    assert not set(prepared.pilots[ORIGINAL].seeds) & set(prepared.pools[ORIGINAL].seeds)


def test_test_labels_change_no_model_and_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = {"method": "fine-tune", "settings": {"epochs": 1}}
    before = search(tmp_path / "before", method)
    honest = prepared_sets.load_splits

    def scrambled(recipe: BenchmarkRecipe) -> Any:
        splits = honest(recipe)
        labels = np.roll(splits.test.labels, 7)
        assert (labels != splits.test.labels).any()
        return replace(splits, test=replace(splits.test, labels=labels))

    monkeypatch.setattr(prepared_sets, "load_splits", scrambled)
    after = search(tmp_path / "after", method)
    assert (after.settings, after.passes) == (before.settings, before.passes)
    assert report(tmp_path / "after")["trials"] == report(tmp_path / "before")["trials"]
    weights = [
        {path.relative_to(out): path.read_bytes() for path in (out / "models").rglob("*.safetensors")}
        for out in (tmp_path / "before", tmp_path / "after")
    ]
    assert weights[0] == weights[1]


def test_a_table_says_what_a_search_found_odd() -> None:
    assert Searched({}).notes == ()
    assert "trials failed: 2" in Searched({}, failed=2).notes[0]
    assert Searched({}, failed=2, error="all failed").notes == (), "the row says so"
    assert "doing nothing was the best trial" in Searched({}, do_nothing=True).notes[0]
