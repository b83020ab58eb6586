from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import tree
from run_factory import ended, fork
from tiny_benchmark import FINE_TUNE, RANDOM, TINY, rows_of, timeless, tiny_recipe
from two_processes import as_two

from gen_unlearn.benchmark import prepared_sets
from gen_unlearn.benchmark.recipe import BenchmarkRecipe
from gen_unlearn.benchmark.results import failures
from gen_unlearn.benchmark.runner import planned, run_benchmark
from gen_unlearn.benchmark.summary import ORIGINAL, RETRAINED, SECOND_RETRAINED, BenchmarkSummary
from gen_unlearn.methods.classification.fine_tune import FineTune
from gen_unlearn.methods.classification.negative_gradient import NegGradPlus

SMALL = {"forget_sets": RANDOM, "methods": TINY["methods"][:2]}
REFERENCES = [ORIGINAL, RETRAINED, SECOND_RETRAINED]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BenchmarkSummary]:
    out = tmp_path_factory.mktemp("done")
    return out, run_benchmark(tiny_recipe(), out)


def changed(out: Path, before: dict[str, int]) -> set[str]:
    """Return the rows, models and logits that were written since."""
    return {
        path
        for path, when in tree(out).items()
        if path.split("/")[0] in ("rows", "models", "logits", "search")
        and "/" in path
        and before.get(path) != when
        and (out / path).is_file()
    }


def test_a_row_for_each_method_set_and_seed(done: tuple[Path, BenchmarkSummary]) -> None:
    out, _ = done
    rows = rows_of(out)
    found = [(row["forget_set"], row["seeds"]["train"], row["name"]) for row in rows]
    names = [*REFERENCES, "fine-tune", "neggrad-plus", "gradient-ascent"]
    assert found == [(of, seed, name) for of in ("random", "class 3") for seed in (0, 1) for name in names]
    assert len(rows) == planned(tiny_recipe())["rows"]
    for row in rows:
        assert row["status"] == "ok"
        assert set(row["seeds"]) == {"train", "unlearn", "forget", "evaluation"}
        assert set(row["digests"]) == {"data", "forget", "original", "retrained", "model"}
        assert all(len(digest) == 64 for digest in row["digests"].values())
        assert {"acc.forget", "gap.acc.test", "js.forget", "avg_gap.optml"} <= set(row["metrics"])
        assert row["cost"]["seconds"] > 0 or row["name"] == ORIGINAL
        passes = {ORIGINAL: 0, RETRAINED: 100, SECOND_RETRAINED: 100}.get(row["name"])
        assert row["cost"]["passes"] == passes if passes is not None else 0 < row["cost"]["passes"] < 100


def test_all_methods_of_a_seed_share_original_and_retrained_model(
    done: tuple[Path, BenchmarkSummary],
) -> None:
    rows = rows_of(done[0])
    for of in ("random", "class 3"):
        for seed in (0, 1):
            group = [row for row in rows if (row["forget_set"], row["seeds"]["train"]) == (of, seed)]
            assert len({row["digests"]["original"] for row in group}) == 1
            assert len({row["digests"]["retrained"] for row in group}) == 1
            assert len({row["digests"]["model"] for row in group}) == len(group)
    assert len({row["digests"]["original"] for row in rows}) == 2, "both forget sets have the same originals"
    assert len({row["digests"]["retrained"] for row in rows}) == 4


def test_roles_share_no_initial_weights() -> None:
    (prepared,) = prepared_sets.prepare_sets(tiny_recipe(forget_sets=RANDOM), Path())
    first = [
        next(pool.build(seed).parameters()).detach().numpy().tobytes()
        for pool in prepared.pools.values()
        for seed in pool.seeds
    ]
    assert len(set(first)) == 3 * 2


def test_the_floor_is_the_second_retrained_model(done: tuple[Path, BenchmarkSummary]) -> None:
    out, summary = done
    rows = rows_of(out)
    of_set = summary.sets[0]
    second = [
        row["metrics"]["js.forget"]
        for row in rows
        if row["name"] == SECOND_RETRAINED and row["forget_set"] == of_set.forget_set
    ]
    method = of_set.method("fine-tune")
    assert method is not None
    assert method.cells["js.forget"].floor == pytest.approx(np.mean(second))
    level = [
        row["metrics"]["acc.test"]
        for row in rows
        if row["name"] == RETRAINED and row["forget_set"] == of_set.forget_set
    ]
    assert method.cells["acc.test"].floor == pytest.approx(np.mean(level))


def test_nothing_is_computed_twice_and_a_change_recomputes_only_its_rows(tmp_path: Path) -> None:
    run_benchmark(tiny_recipe(**SMALL), tmp_path)
    before = tree(tmp_path)
    run_benchmark(tiny_recipe(**SMALL, measure=TINY["measure"] | {"table": ["acc.test"]}), tmp_path)
    assert not changed(tmp_path, before)
    first = SMALL["methods"][0]
    other = [first, {"method": "neggrad-plus", "settings": {"epochs": 2}}]
    run_benchmark(tiny_recipe(**SMALL | {"methods": other}), tmp_path)
    rows = [row for row in rows_of(tmp_path) if row["name"] == "neggrad-plus"]
    expected = {f"rows/{row['key']}.json" for row in rows}
    assert changed(tmp_path, before) == expected | {f"logits/{row['key']}.safetensors" for row in rows}
    twins = [first, {**first, "name": "again"}]
    run_benchmark(tiny_recipe(**SMALL | {"methods": twins}), tmp_path)
    names = [row["name"] for row in rows_of(tmp_path)]
    assert names == 2 * [*REFERENCES, "fine-tune", "again"], "rows of equal settings keep their names"
    digests = {row["digests"]["model"] for row in rows_of(tmp_path) if row["name"] in ("fine-tune", "again")}
    assert len(digests) == 2


def stop_in_second_row(how: Callable[[], object]) -> Callable[[], None]:
    """Return what runs a benchmark and stops it in the middle of its second row of a method."""

    def work() -> None:
        calls = []
        honest = FineTune.__call__

        def stopping(self: FineTune, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                how()
            return honest(self, *args, **kwargs)

        FineTune.__call__ = stopping  # type: ignore[method-assign]
        run_benchmark(tiny_recipe(**SMALL), Path.cwd())

    return work


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_a_row_that_was_cut_short_is_measured_again(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = signal.SIGINT if how == "interrupted" else signal.SIGKILL
    child = fork(stop_in_second_row(lambda: os.kill(os.getpid(), code)))
    assert ended(child) == (130 if how == "interrupted" else -signal.SIGKILL)
    before = tree(tmp_path)
    assert "rows.jsonl" not in before
    summary = run_benchmark(tiny_recipe(**SMALL), tmp_path)
    assert failures(summary) == []
    rows = rows_of(tmp_path)
    kept = [row["key"] for row in rows if f"logits/{row['key']}.safetensors" in before]
    assert len(kept) == 3 + 2 + 3
    assert all(tree(tmp_path)[f"rows/{key}.json"] == before[f"rows/{key}.json"] for key in kept)
    assert not [path for path in tree(tmp_path) if "unfinished" in path]


def test_a_failing_method_is_a_failed_row_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Any:
        raise RuntimeError("out of\nmemory")

    with monkeypatch.context() as patched:
        patched.setattr(NegGradPlus, "__call__", fails)
        summary = run_benchmark(tiny_recipe(**SMALL), tmp_path)
    assert failures(summary) == [
        f"random, neggrad-plus, seed {seed}: RuntimeError: out of memory" for seed in (0, 1)
    ]
    status = {(row["name"], row["status"]) for row in rows_of(tmp_path)}
    assert status == {("neggrad-plus", "failed"), *((name, "ok") for name in (*REFERENCES, "fine-tune"))}
    assert "neggrad-plus" in (tmp_path / "table.md").read_text()
    before = tree(tmp_path)
    assert failures(run_benchmark(tiny_recipe(**SMALL), tmp_path)) == []
    assert len([path for path in changed(tmp_path, before) if path.startswith("rows/")]) == 2


def test_a_search_that_fails_is_failed_rows(tmp_path: Path) -> None:
    changes = SMALL | {"search": {"trials": 2, "pilot_seeds": 1}, "cap": 0.5}
    scrub = {"method": "scrub", "settings": {"epochs": 50}}
    summary = run_benchmark(tiny_recipe(**changes | {"methods": [*FINE_TUNE, scrub]}), tmp_path)
    assert len(failures(summary)) == 2
    assert all(
        "scrub" in one and "all 2 trials failed, the first by BudgetExceededError" in one
        for one in failures(summary)
    )
    rows = [row for row in rows_of(tmp_path) if row["name"] == "fine-tune"]
    assert all(row["status"] == "ok" and row["cost"]["search_passes"] > 0 for row in rows)


def test_test_labels_reach_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_benchmark(tiny_recipe(**SMALL), tmp_path / "before")
    honest = prepared_sets.load_splits

    def scrambled(recipe: BenchmarkRecipe) -> Any:
        splits = honest(recipe)
        return replace(splits, test=replace(splits.test, labels=np.roll(splits.test.labels, 7)))

    monkeypatch.setattr(prepared_sets, "load_splits", scrambled)
    run_benchmark(tiny_recipe(**SMALL), tmp_path / "after")
    before, after = (rows_of(tmp_path / out) for out in ("before", "after"))
    assert [row["digests"]["model"] for row in before] == [row["digests"]["model"] for row in after]
    assert [row["metrics"]["acc.test"] for row in before] != [row["metrics"]["acc.test"] for row in after]


def test_runs_of_a_method_on_one_original_differ(tmp_path: Path) -> None:
    run_benchmark(tiny_recipe(forget_sets=RANDOM, methods=FINE_TUNE, seeds=1, unlearn_seeds=2), tmp_path)
    rows = [row for row in rows_of(tmp_path) if row["name"] == "fine-tune"]
    assert [row["seeds"]["unlearn"] for row in rows] == [0, 1]
    assert len({row["digests"]["model"] for row in rows}) == 2


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    recipe = tiny_recipe(**SMALL, search={"trials": 2, "pilot_seeds": 1})
    run_benchmark(recipe, tmp_path / "one")
    as_two(lambda _: run_benchmark(recipe, tmp_path / "two"))
    one, two = ([timeless(row) for row in rows_of(tmp_path / out)] for out in ("one", "two"))
    assert one == two
    assert tree(tmp_path / "one").keys() == tree(tmp_path / "two").keys(), "the same files, none unfinished"
