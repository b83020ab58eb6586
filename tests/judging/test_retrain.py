"""The retrain gap: by hand from the files of samples, at its floor for a retraining, and told in words."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from judged_runs import Judged

from gen_unlearn.commands.evaluate import evaluate, find_deletion, find_judge
from gen_unlearn.data import IndexedImages, Split
from gen_unlearn.judging.evidence import Deletion, Evidence, Measurer, stratified_order
from gen_unlearn.judging.retrain import measure_retraining
from gen_unlearn.judging.states import sample_plan
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.runs import RunFolder
from gen_unlearn.samples import SampleSet
from gen_unlearn.training.classifier import JudgeFeatures, train_judge
from gen_unlearn.training.judge_config import JudgeConfig

RETAINED = (0, 1, 2, 4, 5, 6, 7, 8, 9)
NAMES = ("fd_to_oracle_before", "retrain_gap_before", "fd_to_oracle", "retrain_gap")
COUNTS = (1, 2, 3)


@pytest.fixture(scope="module")
def cards(judged: Judged) -> dict[int, Scorecard]:
    """The scorecards with one, two and three oracles."""
    run = judged.run.with_overrides(["evaluation.membership.images=0"])
    return {count: evaluate(run, judged.oracles[:count]) for count in COUNTS}


def found(card: Scorecard) -> dict[str, Measure]:
    return {measure.name: measure for measure in card.measures if measure.name in NAMES}


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Frechet distance by eigenvalues of the product of covariances."""
    first, second = (np.cov(features, rowvar=False) for features in (one, other))
    roots = np.sqrt(np.linalg.eigvals(first @ second).real.clip(min=0))
    apart = one.mean(axis=0) - other.mean(axis=0)
    return float(apart @ apart + np.trace(first) + np.trace(second) - 2 * roots.sum())


def features_on_disk(run: RunFolder, generator: RunFolder, again: bool = False) -> np.ndarray:
    """Return the judge's features of samples of the retained classes, from the file in the run."""
    plan = sample_plan(run)
    if again:
        plan = replace(plan, null_images=0, first_index=plan.images_per_class)
    samples = SampleSet.from_file(plan.path(run.samples_path, generator.state_digest()))
    measurer = Measurer(JudgeFeatures(find_judge(run, run.load_split().train)))
    return measurer.features("samples", samples.of_classes(RETAINED).images).array().astype(np.float64)


@pytest.mark.parametrize("count", COUNTS)
def test_by_hand_from_the_files_of_samples(judged: Judged, cards: dict[int, Scorecard], count: int) -> None:
    run, oracles = judged.run, judged.oracles[:count]
    drawn = [features_on_disk(run, oracle) for oracle in oracles]
    again = [features_on_disk(run, oracle, again=True) for oracle in oracles]
    pairs = list(combinations(range(count), 2)) or [(0, 0)]
    floor = np.mean([distance(drawn[one], again[other]) for one, other in pairs])
    to = np.mean([distance(features_on_disk(run, run), other) for other in again])
    measures = found(cards[count])
    assert len(drawn[0]) == len(again[0]) == 27
    assert measures["fd_to_oracle"].value == pytest.approx(to, rel=1e-3)
    assert measures["fd_to_oracle"].floor == pytest.approx(floor, rel=1e-3)
    assert measures["retrain_gap"].value == pytest.approx(to - floor, abs=1e-3 * to)


@pytest.mark.parametrize("count", COUNTS)
def test_the_gap_is_the_distance_less_the_floor_in_both_states(
    cards: dict[int, Scorecard], count: int
) -> None:
    measures = found(cards[count])
    assert tuple(measures) == NAMES
    for suffix in ("_before", ""):
        apart, gap = measures[f"fd_to_oracle{suffix}"], measures[f"retrain_gap{suffix}"]
        assert apart.floor is not None
        assert gap.value == pytest.approx(apart.value - apart.floor, abs=1e-12)
        assert gap.floor == 0
        assert apart.standard_error > 0 < gap.standard_error
    assert measures["fd_to_oracle"].floor == measures["fd_to_oracle_before"].floor


@pytest.mark.parametrize("count", COUNTS)
def test_the_words_fit_the_number_of_oracles(cards: dict[int, Scorecard], count: int) -> None:
    measures = found(cards[count])
    gap, floor = measures["retrain_gap"], measures["fd_to_oracle"].floor_definition
    for measure in measures.values():
        text = measure.definition
        assert "27 images of the retained classes" in text
        assert "1 oracles" not in text
        assert re.fullmatch(r"[A-Z0-9][^\n]*\.", text)
        assert not re.search(r"\.\.|  |: [A-Z]|(?<!arXiv)\. [a-z]", text), text
    assert (f"over {count} such oracles" in gap.definition) == (count > 1)
    assert re.search(r" \(-?[0-9.e-]+ ± [0-9.e-]+\)$", floor), floor
    assert ("to itself" in floor) == (count == 1) == ("to itself" in gap.definition)
    assert ("Two oracles" in gap.definition) == (count == 2)
    if count < 3:
        assert gap.details == {}
    else:
        spread = gap.details["retraining_spread"]
        assert spread > 0
        assert f"scatter by {spread:.2g}" in gap.definition
        assert measures["fd_to_oracle"].details == {}


@pytest.fixture(scope="module")
def measurer(digits_split: Split) -> Measurer:
    data = digits_split.train
    config = JudgeConfig(epochs=2, width=8, feature_dim=16)
    return Measurer(JudgeFeatures(train_judge(data.images[:], data.labels, 10, config, seed=0)))


def as_samples(data: IndexedImages) -> SampleSet:
    return SampleSet(data.images[:], data.labels, np.arange(len(data)))


def test_a_retraining_lies_at_the_floor_and_another_model_beyond_it(
    digits_split: Split, measurer: Measurer
) -> None:
    """With draws of real images for retrained models, and negatives for a model that is none."""
    data = digits_split.train
    order = stratified_order(data)
    draws = [as_samples(data.select(np.sort(order[number::8]))) for number in range(8)]
    negative = replace(draws[7], images=255 - draws[7].images)
    deletion = Deletion((3,), RETAINED, data.select(data.labels == 3), data.select(data.labels != 3))
    evidence = Evidence(
        {"before": negative, "after": draws[6]},
        tuple(draws[0:3]),
        tuple(draws[3:6]),
        deletion,
        digits_split.test,
    )
    measures = {m.name: m for m in measure_retraining(evidence, measurer, ComparisonConfig())}
    near, far = measures["retrain_gap"], measures["retrain_gap_before"]
    spread = near.details["retraining_spread"]
    assert abs(near.value) < 3 * np.hypot(spread, near.standard_error or 0)
    assert far.value > max(100 * spread, 5 * (far.standard_error or 0))


def test_the_deleted_class_does_not_count(judged: Judged, cards: dict[int, Scorecard]) -> None:
    """The run before the deletion has images of it, and no oracle has."""
    before = SampleSet.from_file(judged.run.samples_path / cards[1].samples["before"])
    assert 3 in before.labels
    deletion = find_deletion(judged.run, judged.run.load_split().train)
    assert deletion.classes == (3,)
    assert len(before.of_classes(deletion.retained_classes).images) == 27


def test_nothing_without_an_oracle(digits_split: Split, measurer: Measurer) -> None:
    data = digits_split.train
    states = {"before": as_samples(data), "after": as_samples(data)}
    deletion = Deletion((3,), RETAINED, data.select(data.labels == 3), data.select(data.labels != 3))
    evidence = Evidence(states, (), (), deletion, digits_split.test)
    assert measure_retraining(evidence, measurer, ComparisonConfig()) == []
