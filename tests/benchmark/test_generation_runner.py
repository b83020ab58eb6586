"""A whole benchmark of generators, tiny: what it trains, what it finds again, what it says of failures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from command_line import tree
from tiny_benchmark import rows_of, timeless
from tiny_generation_benchmark import TINY, tiny_generation
from two_processes import as_two

from gen_unlearn.benchmark.generation import prepared
from gen_unlearn.benchmark.generation.pilots import LossLevels, search_settings
from gen_unlearn.benchmark.generation.prepared import prepare_generators
from gen_unlearn.benchmark.generation.runner import planned_generation, run_generation_benchmark
from gen_unlearn.benchmark.results import failures
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED, SECOND_RETRAINED, BenchmarkSummary
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.repro import digest_state

ONE_SET = TINY["forget_sets"][1:2]
FINE_TUNE = TINY["methods"][:1]
SMALL = {"forget_sets": TINY["forget_sets"][2:], "methods": FINE_TUNE}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BenchmarkSummary]:
    out = tmp_path_factory.mktemp("done")
    return out, run_generation_benchmark(tiny_generation(), out)


def test_a_row_for_each_model(done: tuple[Path, BenchmarkSummary]) -> None:
    out, summary = done
    rows = rows_of(out)
    assert failures(summary) == []
    named = {(row["forget_set"], row["name"]) for row in rows}
    assert len(named) == len(rows) == planned_generation(tiny_generation())["rows"] + 2, (
        "a design has two more"
    )
    assert {name for of, name in named if of == "deletable"} >= {"SPM", "SPM, retrained", "fine-tune"}
    for row in rows:
        assert {"fd.test", "fd.retrained", "copies.forget", "loss.forget"} <= set(row["metrics"])
        assert ("recognised.forgotten" in row["metrics"]) == (row["forget_set"] == "class 3")
        assert row["cost"]["passes"] == 100.0 or "retrained" not in row["name"]
        if row["name"] in ("retrained", "SPM, retrained"):
            assert row["metrics"]["fd.retrained"] == 0
    second = [row for row in rows if row["name"].endswith("second retrained")]
    assert (out / "report.html").read_text().count("data:image/png") == len(rows) - len(second)
    for row in second:
        assert row["metrics"]["fd.retrained"] > 0
        assert row["cost"]["passes"] == 100


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BenchmarkSummary]:
    """One forget set with one method and one design."""
    out = tmp_path_factory.mktemp("small")
    return out, run_generation_benchmark(tiny_generation(**SMALL), out)


def test_a_finished_benchmark_is_found_again(small: tuple[Path, BenchmarkSummary]) -> None:
    out, summary = small
    before = {path: when for path, when in tree(out).items() if path.startswith(("models", "observations"))}
    rows = rows_of(out)
    again = run_generation_benchmark(tiny_generation(**SMALL), out)
    assert again.as_json() == summary.as_json()
    assert rows_of(out) == rows
    after = {path: when for path, when in tree(out).items() if path.startswith(("models", "observations"))}
    assert after == before


def test_another_run_finds_the_same(
    done: tuple[Path, BenchmarkSummary], small: tuple[Path, BenchmarkSummary]
) -> None:
    known = {row["key"]: timeless(row) for row in rows_of(done[0])}
    rows = rows_of(small[0])
    assert len(rows) == 4 + 3
    for row in rows:
        assert timeless(row) == known[row["key"]]


def test_memorised_images_are_trained_on_again_and_again_and_forgotten_together() -> None:
    (one,) = prepare_generators(tiny_generation(forget_sets=ONE_SET, designs=[]))
    case = one.case
    original, retrained = one.pools[ORIGINAL].data, one.pools[RETRAINED].data
    assert len(case.forget_images) == 3 * 20
    assert len(unique_ids(case.forget_images.ids)) == len(one.measured.forgotten) == 3
    assert len(original) - len(retrained) == 60
    assert not retrained.holds(case.forget.ids).any()
    assert len(unique_ids(original.ids)) == len(unique_ids(retrained.ids)) + 3
    data = case.unlearn_data()
    assert (len(data.forget), len(data.retain)) == (60, len(retrained))


def test_the_second_retrained_model_is_that_of_the_next_seed(tmp_path: Path) -> None:
    recipe = tiny_generation(forget_sets=ONE_SET, methods=[], designs=[], seeds=3)
    summary = run_generation_benchmark(recipe, tmp_path)
    assert "next one" in summary.notes[0]
    found = {(row["name"], row["seeds"]["train"]): row for row in rows_of(tmp_path)}
    for seed, following in ((0, 1), (1, 2), (2, 0)):
        second, retrained = found[SECOND_RETRAINED, seed], found[RETRAINED, following]
        assert second["digests"]["model"] == retrained["digests"]["model"]
        assert second["digests"]["retrained"] == found[RETRAINED, seed]["digests"]["model"]
        assert second["metrics"]["fd.retrained"] > 0
        attacks = [row["metrics"]["mia.lira.auc"] for row in (second, retrained)]
        assert attacks[0] == attacks[1], "beside the same others: never itself"


@pytest.mark.parametrize(("seeds", "ring"), [(1, (0, 1)), (2, (0, 1, 2)), (3, (0, 1, 2)), (4, (0, 1, 2, 3))])
def test_no_pair_of_retrained_models_is_compared_twice(seeds: int, ring: tuple[int, ...]) -> None:
    (one,) = prepare_generators(tiny_generation(forget_sets=ONE_SET, designs=[], seeds=seeds))
    assert one.pools[RETRAINED].seeds == ring
    pairs = [{seed, one.next_seed(seed)} for seed in one.pools[ORIGINAL].seeds]
    assert all(len(pair) == 2 for pair in pairs)
    assert len({tuple(sorted(pair)) for pair in pairs}) == seeds


def test_images_of_the_public_core_are_not_forgotten() -> None:
    recipe = tiny_generation()
    deletable = prepare_generators(recipe)[2]
    design = prepared.design_recipe(recipe.generator, recipe.design("SPM"))
    train = deletable.case.splits.train
    public = train.select(prepared.core_of(design, train))
    assert len(public) > len(train) / 3
    assert not public.holds(deletable.case.forget.ids).any()


def test_two_processes_find_what_one_finds(small: tuple[Path, BenchmarkSummary], tmp_path: Path) -> None:
    out, _ = small
    recipe = tiny_generation(**SMALL)
    as_two(lambda _: run_generation_benchmark(recipe, tmp_path))
    one, two = ([timeless(row) for row in rows_of(folder)] for folder in (out, tmp_path))
    assert one == two
    assert tree(out).keys() == tree(tmp_path).keys(), "the same files, none unfinished"


def test_a_method_that_fails_is_a_row_and_is_tried_again(tmp_path: Path) -> None:
    wild = [{"method": "fine-tune", "settings": {"steps": 2, "batch_retain": 8, "lr": 1e30}}]
    changes = {"forget_sets": ONE_SET, "designs": []}
    summary = run_generation_benchmark(tiny_generation(methods=wild, **changes), tmp_path)
    assert len(failures(summary)) == 1
    assert "not finite" in failures(summary)[0]
    row = next(row for row in rows_of(tmp_path) if row["name"] == "fine-tune")
    assert (row["status"], row["metrics"]) == ("failed", {})
    assert failures(run_generation_benchmark(tiny_generation(methods=FINE_TUNE, **changes), tmp_path)) == []


def test_settings_are_searched_by_losses_of_pilots(tmp_path: Path) -> None:
    search = {"trials": 3, "images": 20, "draws": 2}
    method = [{"method": "neggrad", "settings": {"batch_forget": 8, "steps": 3}}]
    recipe = tiny_generation(forget_sets=ONE_SET, methods=method, designs=[], search=search)
    (one,) = prepare_generators(recipe)
    for pool in one.pilots.values():
        for seed in pool.seeds:
            pool.train(tmp_path / "models", seed)
    found = search_settings(recipe.methods[0], one, recipe, tmp_path, Accelerator(cpu=True))
    assert found.passes > 0
    assert found.settings["steps"] == 3
    assert not set(one.pilots[ORIGINAL].seeds) & set(one.pools[ORIGINAL].seeds)
    assert search_settings(recipe.methods[0], one, recipe, tmp_path, Accelerator(cpu=True)) == found
    assert len(list((tmp_path / "search").iterdir())) == 1


def test_levels_are_percents_of_a_loss_on_the_same_noise(tmp_path: Path) -> None:
    recipe = tiny_generation(forget_sets=ONE_SET, designs=[], search={"images": 10, "draws": 2})
    (one,) = prepare_generators(recipe)
    pool = one.pools[ORIGINAL]
    pool.train(tmp_path, 0)
    model, levels = pool.load(tmp_path, 0), LossLevels.of(one, recipe)
    assert levels(model) == levels(pool.load(tmp_path, 0))
    assert digest_state(model.state_dict()) == digest_state(pool.load(tmp_path, 0).state_dict())
    forget, retain, heldout = levels.parts
    assert len(forget) == 3
    assert len(retain) == len(heldout) == 10
    assert not one.case.splits.test.holds(unique_ids(heldout.ids)).any()
    loss = np.exp(levels(model).retain / 100)
    assert 0.05 < loss < 2
