from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import refused, run_command, works
from tiny_benchmark import RANDOM, TINY, rows_of

from gen_unlearn.methods.classification.negative_gradient import NegGradPlus
from gen_unlearn.training.checkpoint import TrainingInterruptedError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | {"forget_sets": RANDOM, "methods": TINY["methods"][:2]}))
    return path


def test_runs_and_says_where_everything_is(config: Path, tmp_path: Path) -> None:
    facts = works("benchmark", "--config", config, "--out", tmp_path / "out", "--set", "seeds=1")
    assert facts["failed"] == []
    for name in ("report.html", "table.md", "summary.json", "rows.jsonl"):
        assert Path(facts[name]).stat().st_size > 100
    assert len(rows_of(tmp_path / "out")) == 3 + 2
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["seeds"] == {"train": 1, "unlearn": 1}
    result = run_command("benchmark", "--config", tmp_path / "out" / "recipe.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].split() == ["report.html", str(tmp_path / "out" / "report.html")]


def test_a_dry_run_counts_and_writes_nothing(config: Path, tmp_path: Path) -> None:
    arguments = ("benchmark", "--config", config, "--out", tmp_path / "out", "--dry-run")
    assert works(*arguments) == {"models": 6, "trials": 0, "rows": 10}
    result = run_command(*arguments, "--set", "search.trials=3", "--set", "search.pilot_seeds=1")
    assert "8 models, 6 trials, 10 rows" in result.stdout
    assert not (tmp_path / "out").exists()


def test_a_failed_method_is_told_with_exit_code_1(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Any:
        raise ValueError("it ran away")

    monkeypatch.setattr(NegGradPlus, "__call__", fails)
    arguments = ("benchmark", "--config", config, "--out", tmp_path / "out", "--set", "seeds=1")
    result = run_command(*arguments)
    assert result.exit_code == 1
    reason = "random, neggrad-plus, seed 0: ValueError: it ran away"
    assert f"failed: {reason}" in result.stdout.splitlines()
    again = run_command(*arguments, "--json")
    assert again.exit_code == 1
    assert json.loads(again.stdout.splitlines()[-1])["failed"] == [reason]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), TrainingInterruptedError(1, 2)])
def test_ctrl_c_says_how_to_go_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    def stops(*_: object, **__: object) -> Any:
        raise stop

    monkeypatch.setattr(NegGradPlus, "__call__", stops)
    result = run_command("benchmark", "--config", config, "--out", tmp_path / "out", "--set", "seeds=1")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == f"interrupted: the same command goes on in {tmp_path / 'out'}"


def test_a_file_is_no_folder(config: Path) -> None:
    assert "expected a folder" in refused("benchmark", "--config", config, "--out", config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seedz=3", "unknown key seedz"),
        ("methods=[{method: forget-it}]", "expected one of the methods"),
        ("measure.table=[accuracy]", "accuracy"),
        ("forget_sets=[{name: a, choose: {kind: class, classes: [eleven]}}]", "eleven"),
        ("split.test=5000", "5000"),
    ],
)
def test_mistakes_are_one_line(config: Path, tmp_path: Path, override: str, message: str) -> None:
    line = refused("benchmark", "--config", config, "--out", tmp_path / "out", "--set", override)
    assert message in line


def test_there_is_no_such_recipe(tmp_path: Path) -> None:
    assert "there is no recipe" in refused("benchmark", "--config", tmp_path / "no.yaml", "--out", tmp_path)
