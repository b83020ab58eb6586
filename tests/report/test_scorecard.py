"""The scorecard as a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gen_unlearn.metrics.scorecard import Measure, Scorecard

CARD = Scorecard(
    measures=(Measure("fd_retain_after", 12.5, "Distance.", 0.25, 3.0, "training images", {"p_value": 0.5}),),
    protocol={"seeds": [0, 1]},
    accuracy_per_class={"after": {"cat": 0.5}},
    samples={"after": "a.safetensors"},
    notes=("One note.",),
    roc={"likelihood ratio": {"random removal": {"fpr": [0.0, 1.0], "tpr": [0.25, 1.0]}}},
    confusion={"after": {"null token": {"dog": 3, "cat": 0}}},
)


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text(CARD.to_json(), encoding="utf-8")
    found = Scorecard.from_file(path)
    assert found == CARD
    assert list(found.confusion["after"]["null token"]) == ["dog", "cat"], "the order of the labels"


def test_reads_a_file_from_before_there_were_curves(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    fields = json.loads(CARD.to_json())
    del fields["roc"], fields["confusion"]
    path.write_text(json.dumps(fields), encoding="utf-8")
    found = Scorecard.from_file(path)
    assert (found.roc, found.confusion) == ({}, {})
    assert found.measures == CARD.measures


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"measures": [{"name": "x"}]}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "card.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"card\.json is not a scorecard"):
        Scorecard.from_file(path)
