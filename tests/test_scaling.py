"""The simulation of scaling: its arithmetic, and that the command runs at a small size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from evaluation import scaling
from evaluation.scaling import block_efficiency
from evaluation.scaling_adapters import AdapterWorld, efficiency, every_nth, routes_of_clusters


def test_blocks_in_turn() -> None:
    assert block_efficiency(1000, 100, 1) == 1
    assert block_efficiency(1000, 100, 10) == 1
    assert block_efficiency(1000, 100, 4) == pytest.approx(250 / 300), "two processes have a third block"
    assert block_efficiency(1050, 100, 11) == pytest.approx(1050 / 11 / 100)


def test_efficiency_of_shares() -> None:
    sizes = {0: 4, 1: 3, 2: 2, 3: 1}
    assert efficiency([[0, 3], [1, 2]], sizes, 1) == 1
    assert efficiency([[0, 1], [2, 3]], sizes, 1) == pytest.approx(10 / (2 * 7))
    assert efficiency([[0, 1], [2, 3]], sizes, 2) == pytest.approx(6 / (2 * 4)), "a stack takes its largest"
    assert efficiency([[0, 2], [1, 3]], sizes, 2) == pytest.approx(6 / (2 * 4))
    assert every_nth(sizes, 2) == [[3, 1], [2, 0]]


def test_routes_do_not_depend_on_how_many_neighbours_are_asked_for() -> None:
    few, many = AdapterWorld(50, (1,), clusters=10), AdapterWorld(50, (1, 4), clusters=10)
    assert (routes_of_clusters(few, 300, 0)[:, 0] == routes_of_clusters(many, 300, 0)[:, 0]).all()


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "scaling.json"
    arguments = ["--images", "4000", "--adapters", "100", "--result", str(result)]
    monkeypatch.setattr(sys, "argv", ["scaling", *arguments])
    scaling.main()
    tables = json.loads(result.read_text(encoding="utf-8"))["tables"]
    printed = capsys.readouterr().out
    assert all(f"\n{title}\n" in printed for title in tables)
    for row in tables["shares"]:
        assert 0 < row["efficiency"] <= 1
        assert row["processes"] > 8 or row["efficiency"] >= row["every P-th by size"]
    assert {row["parameters"] for row in tables["steps"]} == {9_659_843, 38_570_883}
    store = tables["memory"][0]
    assert store["bytes each"] == 32 * 32 * 3 + 8 + 16
