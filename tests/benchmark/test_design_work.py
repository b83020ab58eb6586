"""Designs in a benchmark: one that failed is tried again, and does not stop the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from tiny_benchmark import FINE_TUNE, RANDOM, rows_of, timeless, tiny_recipe
from two_processes import as_two

from gen_unlearn.benchmark.design_work import DELETED, DesignTask, design_rows, measure_design, train_design
from gen_unlearn.benchmark.prepared_sets import prepare_sets
from gen_unlearn.benchmark.row_work import Bench
from gen_unlearn.benchmark.runner import run_benchmark

SISA = {"design": "sisa", "settings": {"sisa": {"shards": 2, "epochs": 2, "batch_size": 50}}}


def test_a_failed_design_is_told_and_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(forget_sets=RANDOM, methods=FINE_TUNE, designs=[SISA])
    run_benchmark(recipe, tmp_path)
    before = {row["seeds"]["train"]: row for row in rows_of(tmp_path) if row["name"] == "sisa"}
    (prepared,) = prepare_sets(recipe, tmp_path)
    bench = Bench(recipe, tmp_path, Accelerator(cpu=True))
    tasks = [DesignTask(prepared, recipe.designs[0], seed) for seed in (0, 1)]
    file = bench.logits_file(tasks[1].key(recipe, DELETED))
    file.rename(file.with_suffix(".elsewhere"))
    file.with_suffix(".error.json").write_text(json.dumps("RuntimeError: out of memory"))
    for task in tasks:
        measure_design(task, bench)
    rows = [design_rows(task, bench) for task in tasks]
    assert [row.status for row in rows[0]] == ["ok"] * 3
    assert [(row.status, row.error) for row in rows[1]] == [("failed", "RuntimeError: out of memory")]
    train_design(tasks[1], bench)
    measure_design(tasks[1], bench)
    assert design_rows(tasks[1], bench)[0].metrics == before[1]["metrics"]
    assert "train" not in capfd.readouterr().err


def test_designs_are_trained_whole_by_one_of_two_processes(tmp_path: Path) -> None:
    training = {"images": 40, "batch_size": 20, "warmup_images": 20}
    spm = {"design": "semi-parametric", "settings": {"training": training}}
    recipe = tiny_recipe(forget_sets=RANDOM, methods=FINE_TUNE, designs=[spm])
    run_benchmark(recipe, tmp_path / "one")
    as_two(lambda _: run_benchmark(recipe, tmp_path / "two"))
    one, two = ([timeless(row) for row in rows_of(tmp_path / out)] for out in ("one", "two"))
    assert one == two
    assert {row["status"] for row in one} == {"ok"}
