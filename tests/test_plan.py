"""``gen-unlearn info --plan``."""

from __future__ import annotations

from pathlib import Path

from command_line import CONFIGS, refused, run_command, works

NUMBERS = [
    word
    for setting in (
        "count=100",
        "neighbours=2",
        "images=1000",
        "features=16",
        "classes=4",
        "imbalance=1.5",
    )
    for word in ("--set", setting)
]


def test_plans_an_ensemble_without_a_run() -> None:
    facts = works("info", "--plan", *NUMBERS, "--set", "requests_per_day=10", "--set", "batch=5")
    assert facts["count"] == 100
    assert facts["visits"] == 1.5 * 2**2 * 1000 / 100
    assert round(facts["touched"], 3) == round(100 * (1 - 0.98**5), 3)
    assert facts["ledger_bytes"] == 1000 * 2 * 18
    assert facts["level"] == "bit-exact"
    assert facts["seconds"] > 0


def test_prints_the_plan_for_people() -> None:
    result = run_command("info", "--plan", *NUMBERS, "--set", "family=sgd")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["adapters", "100", "of", "family", "sgd,", "2", "per", "image"]
    assert [line for line in lines if line.startswith("visits") and " 1,200 " in line]


def test_refuses_what_cannot_be_planned() -> None:
    assert "KEY out of count, neighbours" in refused("info", "--plan", "--set", "adapter=5")
    error = refused("info", "--plan", "--set", "count=5", "--set", "batch=2")
    assert error == "error: --set count=5 --set batch=2: expected neighbours of at most count (5), got 10"
    assert "--set images" in refused("info", "--plan", "--set", "images=many")
    assert "not a switch" in refused("info", "--plan", "--set", "images=true")
    assert "expected --set together with --plan or a RUN" in refused("info", "--set", "images=5")
    error = refused("info", "--plan", "--set", "family=forest")
    assert error == "error: --set family: Input should be 'ridge' or 'sgd', got 'forest'"


def test_plans_for_the_ensemble_of_a_run(tmp_path: Path) -> None:
    adapters = ("model.adapters.count=20", "model.adapters.neighbours=3")
    settings = ("training.images=64", "model.encoder.width=8", *adapters)
    changes = [word for setting in settings for word in ("--set", setting)]
    works("train", "--config", CONFIGS / "digits_adapters.yaml", "--out", tmp_path / "run", *changes)
    known, planned = works("info", tmp_path / "run"), works("info", tmp_path / "run", "--plan")
    assert planned["count"] == known["adapters"] == 20
    assert planned["deadline_days"] == 30
    assert planned["images"] == known["exemplars"]
    assert round(planned["imbalance"], 3) == known["load_imbalance"] > 1
    assert planned["features"] == 16
    assert works("info", tmp_path / "run", "--plan", "--set", "images=5000")["images"] == 5000
