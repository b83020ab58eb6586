"""Accuracies and distances of predictions, on predictions that were made up by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gen_unlearn.data import IndexedImages
from gen_unlearn.judging.prediction_gaps import gap_notes, measure_prediction_gaps
from gen_unlearn.judging.predictions import (
    JudgedImages,
    Predictions,
    accuracy_per_class,
    confusion,
    mean_accuracy,
    measure_accuracies,
)
from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.report.table import text_table
from gen_unlearn.repro import image_ids

NAMES = ("a", "b", "c")
LABELS = np.array([0, 0, 1, 1])


def sure(*classes: int) -> np.ndarray:
    """Return probabilities of a model that is nearly certain of these classes."""
    return np.eye(3)[list(classes)] * 0.94 + 0.02


def predictions(states: dict[str, list[np.ndarray]], labels: np.ndarray = LABELS) -> Predictions:
    """Put the predictions of each state into one set, and into the held-out images."""
    pools = {
        state: tuple({"forget": found, "held_out": found} for found in pool) for state, pool in states.items()
    }
    return Predictions({"forget": labels, "held_out": labels}, pools, NAMES)


def by_name(measures: list[Measure]) -> dict[str, Measure]:
    return {measure.name: measure for measure in measures}


def floor(measure: Measure) -> float:
    assert measure.floor is not None
    return measure.floor


def test_images_are_sorted_by_what_is_retained() -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    every = IndexedImages(pixels, np.array([0, 1, 2, 0, 1, 2]), image_ids(pixels), NAMES, tuple("uvwxyz"))
    images = JudgedImages(every.select(np.array([2])), every.select(np.arange(0)), every, (0, 1))
    labels = images.labels
    assert list(labels) == ["forget", "test", "forget_class_test", "held_out"], "an empty set is left out"
    assert labels["test"].tolist() == [0, 1, 0, 1]
    assert labels["forget_class_test"].tolist() == [2, 2]
    rows = images.by_set(np.arange(1), np.arange(0), np.arange(6))
    assert rows["forget_class_test"].tolist() == [2, 5]


def test_accuracies_are_counted_and_those_of_several_models_averaged() -> None:
    judged = predictions({"after": [sure(0, 1, 1, 1)], "oracle": [sure(0, 0, 0, 0), sure(0, 0, 1, 1)]})
    found = by_name(measure_accuracies(judged))
    assert list(found) == ["accuracy_forget_after", "accuracy_forget_oracle"], "none over all held-out images"
    after, oracle = found.values()
    assert after.value == 0.75
    assert after.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert oracle.value == after.floor == oracle.floor == 0.75
    assert oracle.standard_error == pytest.approx(0.25), "std of 0.5 and 1 over the root of 2"
    assert "2 oracles" in after.floor_definition
    alone = by_name(measure_accuracies(predictions({"after": [sure(0, 1, 1, 1)]})))["accuracy_forget_after"]
    assert alone.floor is None
    assert mean_accuracy([sure(0, 0, 1, 1)], LABELS).standard_error == 1 / 5


def test_confusions_count_all_models_and_their_diagonal_is_the_accuracy() -> None:
    judged = predictions({"oracle": [sure(0, 1, 1, 1), sure(0, 0, 2, 1)]})
    assert confusion(judged, "oracle") == {"a": {"a": 3, "b": 1, "c": 0}, "b": {"a": 0, "b": 3, "c": 1}}
    assert accuracy_per_class(judged, "oracle") == {"a": 0.75, "b": 0.75}


def test_the_gap_lies_above_its_floor_by_the_excess() -> None:
    judged = predictions(
        {
            "before": [sure(2, 2, 2, 2)],
            "after": [sure(0, 2, 1, 1)],
            "oracle": [sure(0, 0, 1, 1), sure(0, 0, 0, 1), sure(0, 0, 1, 1)],
        }
    )
    found = by_name(measure_prediction_gaps(judged))
    gap, before, excess = (
        found[f"prediction_gap_{name}"] for name in ("forget", "forget_before", "excess_forget")
    )
    assert gap.value == pytest.approx((1 + 2 + 1) / 12)
    assert gap.floor == pytest.approx((1 + 0 + 1) / 12)
    assert before.value == 1
    assert before.floor == gap.floor
    assert excess.value == pytest.approx(gap.value - floor(gap))
    assert excess.floor == 0
    assert "retraining_spread" in excess.details
    for name in ("soft_gap_forget", "js_gap_forget", "js_gap_held_out"):
        assert 0 < floor(found[name]) < found[name].value < found[f"{name}_before"].value
    assert gap.details["indistinguishable"] == excess.details["indistinguishable"] == 0
    assert gap_notes(list(found.values())) == []


def test_at_the_floor_a_model_is_indistinguishable_and_never_better() -> None:
    oracles = [sure(0, 0, 1, 1), sure(0, 0, 0, 1)]
    found = measure_prediction_gaps(
        predictions({"before": [sure(1, 0, 0, 1)], "after": [sure(0, 0, 1, 1)], "oracle": oracles})
    )
    named = by_name(found)
    assert named["prediction_gap_forget"].value < floor(named["prediction_gap_forget"])
    assert named["prediction_gap_excess_forget"].value < 0
    assert named["prediction_gap_forget"].details == {"indistinguishable": 1.0}
    (note,) = gap_notes(found)
    assert "indistinguishable" in note
    assert "prediction_gap (forget, held_out), " in note
    for measure in found:
        assert "indistinguishable" in measure.definition
        assert "never better" in measure.definition
    undone = measure_prediction_gaps(
        predictions({"before": [oracles[0]], "after": [oracles[0]], "oracle": oracles})
    )
    assert "before the deletion is at or below the floor as well" in gap_notes(undone)[1]


def test_equal_predictions_are_not_certain_to_stay_equal() -> None:
    same = [sure(0, 0, 1, 1)]
    found = by_name(measure_prediction_gaps(predictions({"after": same, "oracle": same * 2})))
    for name in ("prediction_gap_forget", "prediction_gap_excess_forget"):
        assert found[name].value == 0
        assert found[name].standard_error == 1 / 5


def test_one_retrained_model_gives_no_floor() -> None:
    found = by_name(
        measure_prediction_gaps(predictions({"after": [sure(0, 0)], "oracle": [sure(0, 1)]}, LABELS[:2]))
    )
    assert found["prediction_gap_forget"].value == 0.5
    assert found["prediction_gap_forget"].floor is None
    assert not any("excess" in name for name in found)
    assert "two retrained models give the floor" in found["js_gap_forget"].definition


def test_one_image_has_an_accuracy_and_no_distance() -> None:
    judged = predictions({"after": [sure(1)], "oracle": [sure(0)]}, LABELS[:1])
    assert by_name(measure_accuracies(judged))["accuracy_forget_after"].value == 0
    assert measure_prediction_gaps(judged) == []
    assert measure_prediction_gaps(predictions({"after": [sure(0, 0, 1, 1)]})) == [], (
        "nothing to compare with"
    )


def test_the_table_has_a_column_for_each_state_and_distances_in_that_of_what_is_compared() -> None:
    right, wrong = sure(0, 0, 1, 1), sure(0, 0, 1, 2)
    judged = predictions(
        {"before": [wrong], "after": [right], "oracle": [right] * 2, "parametric": [right] * 2}
    )
    measures = (*measure_accuracies(judged), *measure_prediction_gaps(judged))
    lines = text_table(Scorecard(measures, {})).splitlines()
    assert lines[0].split() == ["before", "after", "oracle", "parametric", "floor"]
    cells = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert cells["accuracy_forget"].count("100") == 4, "all but the first state, and the floor"
    line = cells["prediction_gap_forget_parametric"]
    before, after = line.index("25"), line.index("0\u00a0±")
    assert before < lines[0].index("before") + len("before") < after < lines[0].index("after") + len("after")
    assert "prediction_gap_forget_before" not in cells
