"""Evaluation: the measures on images whose values are known, and what is kept, reused and refused."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY_OVERRIDES
from PIL import Image

from gen_unlearn.commands.evaluate import evaluate
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.train import deleted_from, train
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.data import IndexedImages, Split
from gen_unlearn.judging.classes import accuracy_per_class, measure_forgetting
from gen_unlearn.judging.copies import measure_copies
from gen_unlearn.judging.evidence import Deletion, Evidence, Measurer, Recogniser, stratified_order
from gen_unlearn.judging.quality import measure_accuracy, measure_quality
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.runs import RunFolder
from gen_unlearn.samples import NULL_LABEL, SampleSet
from gen_unlearn.training.classifier import JudgeClassifier, JudgeConfig, JudgeFeatures, train_judge

RETAINED = (0, 1, 2, 4, 5, 6, 7, 8, 9)
DIGITS = Path(__file__).parents[1] / "configs" / "digits_spm.yaml"
TINY = (*TINY_OVERRIDES, "evaluation.images_per_class=4", "evaluation.null_images=6")


def recipe(*overrides: str) -> RunConfig:
    return load_config(DIGITS, [*TINY, *overrides])


def as_samples(data: IndexedImages) -> SampleSet:
    """Present real images as generated ones."""
    return SampleSet(data.images[:], data.labels, np.arange(len(data)))


def by_name(measures: list[Measure]) -> dict[str, Measure]:
    return {measure.name: measure for measure in measures}


def delete(run: RunFolder, **asked: Any) -> None:
    """Delete as the command does, keeping what compares before and after."""
    forget(run, ForgetRequest(**asked).resolve(run).forget_set, keep_comparison=True)


def sample_times(run: RunFolder) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in run.samples_path.iterdir()}


@pytest.fixture(scope="module")
def model(digits_split: Split) -> JudgeClassifier:
    data = digits_split.train
    config = JudgeConfig(epochs=6, width=8, feature_dim=16)
    return train_judge(data.images[:], data.labels, 10, config, seed=0)


@pytest.fixture(scope="module")
def judge(model: JudgeClassifier) -> Recogniser:
    return Recogniser(model)


@pytest.fixture(scope="module")
def measurer(model: JudgeClassifier) -> Measurer:
    return Measurer(JudgeFeatures(model))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A trained run, not yet evaluated; tests work on copies."""
    return train(recipe(), tmp_path_factory.mktemp("evaluate") / "run")


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder.open(Path(shutil.copytree(trained.path, tmp_path / "run")))


def without_deletion(split: Split, **states: SampleSet) -> Evidence:
    nothing = split.train.select(np.empty(0, dtype=np.int64))
    return Evidence(states, (), (), Deletion((), tuple(range(10)), nothing, split.train), split.test)


def test_real_images_as_samples_get_the_floors(
    judge: Recogniser, measurer: Measurer, digits_split: Split
) -> None:
    train, test = digits_split.train, digits_split.test
    as_many = train.select(stratified_order(train)[: len(test)])
    states = {"before": as_samples(test), "after": as_samples(as_many)}
    evidence = without_deletion(digits_split, **states)
    found = by_name(
        [*measure_quality(evidence, measurer, ComparisonConfig()), *measure_accuracy(evidence, judge)]
    )
    for name in ("fd_retain", "kd_retain", "precision", "recall", "density", "coverage"):
        after = found[f"{name}_after"]
        assert after.value == pytest.approx(after.floor, rel=1e-9), (
            f"{name} of training against held-out images"
        )
    assert found["fd_retain_before"].value == pytest.approx(0, abs=1e-6), "held-out images against themselves"
    assert found["fd_retain_after"].floor > 1e-3
    assert found["kd_retain_before"].details["p_value"] > 0.9
    assert found["precision_before"].value == found["coverage_before"].value == 1
    assert found["authenticity_share_after"].value == 0, "they are training images"
    assert found["authenticity_share_before"].value == found["authenticity_share_before"].floor > 0.2
    assert found["copying_z_after"].value < -3 < found["copying_z_before"].value
    assert found["mifid_before"].value == 0 < found["mifid_before"].floor < 1e3 < found["mifid_after"].value
    right = judge.recognise(digits_split.test.images[:]) == digits_split.test.labels
    accuracy = found["retained_accuracy_before"]
    assert accuracy.value == accuracy.floor == right.mean()
    assert 0.5 < right.mean() < 1


def test_quality_is_measured_on_the_retained_classes_alone(
    judge: Recogniser, measurer: Measurer, digits_split: Split
) -> None:
    real = digits_split.test
    kept = real.labels != 3
    ruined = real.images[:].copy()
    ruined[~kept] = 255 - ruined[~kept]
    leaving = digits_split.train.labels == 3
    deletion = Deletion(
        (3,), RETAINED, digits_split.train.select(leaving), digits_split.train.select(~leaving)
    )
    states = {"after": SampleSet(ruined, real.labels, np.arange(len(real)))}
    evidence = Evidence(states, (), (), deletion, real)
    found = by_name(
        [*measure_quality(evidence, measurer, ComparisonConfig()), *measure_accuracy(evidence, judge)]
    )
    assert found["fd_retain_after"].value == pytest.approx(0, abs=1e-6)
    assert found["retained_accuracy_after"].value == found["retained_accuracy_after"].floor


def test_a_refused_class_lowers_the_rate_and_the_null_token_is_apart(
    judge: Recogniser, digits_split: Split
) -> None:
    data = digits_split.test
    seen = judge.recognise(data.images[:])
    rows = np.concatenate(
        [np.flatnonzero((seen == label) & (data.labels == label))[:5] for label in range(10)]
    )
    sure = data.select(rows)  # 5 images of each class that the judge gets right
    assert len(sure) == 50
    threes = np.flatnonzero(sure.labels == 3)
    before = as_samples(sure)
    after = as_samples(sure.select(sure.labels != 3))
    null = SampleSet(sure.images[threes][:4], np.full(4, NULL_LABEL), np.arange(4))
    nulls = SampleSet(
        np.concatenate([after.images, null.images]),
        np.concatenate([after.labels, null.labels]),
        np.concatenate([after.indices, null.indices]),
    )
    empty = sure.select(np.empty(0, dtype=np.int64))
    deletion = Deletion((3,), RETAINED, empty, sure)
    evidence = Evidence({"before": before, "after": nulls}, (), (), deletion, sure)
    found = by_name(measure_forgetting(evidence, judge, 5))
    assert found["forgotten_class_rate_before"].value == 1
    assert found["forgotten_class_rate_after"].value == 0
    assert found["forgotten_class_rate_null"].value == 1
    assert found["forgotten_class_rate_null"].floor == 0.1
    assert accuracy_per_class(judge, nulls, sure.class_names) == {str(d): 1.0 for d in range(10) if d != 3}
    nothing = replace(evidence, deletion=Deletion((), tuple(range(10)), empty, sure))
    assert measure_forgetting(nothing, judge, 5) == []


def test_copies_of_deleted_images_are_found(digits_split: Split) -> None:
    data = digits_split.train
    deletion = Deletion((), tuple(range(10)), data.select(np.arange(20)), data.select(np.arange(20, 200)))
    states = {"before": as_samples(deletion.images), "after": as_samples(digits_split.test)}
    found = by_name(measure_copies(Evidence(states, (), (), deletion, digits_split.test)))
    assert found["nearest_deleted_before"].value == 0
    assert found["nearest_deleted_after"].value > 0.5
    assert found["nearest_deleted_before"].floor != 0


def test_evaluation_keeps_and_reuses_what_it_made(run: RunFolder) -> None:
    first = evaluate(run)
    (judge,) = run.metrics_path.glob("judge-*/config.json")
    times, trained = sample_times(run), judge.stat().st_mtime_ns
    assert len(times) == 1
    assert evaluate(run) == first == Scorecard.from_file(run.scorecard_path)
    assert sample_times(run) == times
    assert judge.stat().st_mtime_ns == trained
    assert list(first.samples) == ["before"]
    assert all(math.isfinite(measure.value) and measure.definition for measure in first.measures)


def test_the_whole_comparison(run: RunFolder, tmp_path: Path) -> None:
    before = evaluate(run)
    delete(run, classes=("3",))
    oracle = train(run.config, tmp_path / "oracle", *deleted_from([run.path]))
    oracle_files = set(oracle.path.rglob("*"))
    card = evaluate(run, [oracle])
    assert all("was not" not in note for note in card.notes)
    assert card.samples["before"] == before.samples["before"], "kept from before the deletion"
    assert set(card.samples) == {"before", "after", "oracle"}
    assert set(oracle.path.rglob("*")) == oracle_files, "the oracle's folder is only read"
    sets = {state: SampleSet.from_file(run.samples_path / name) for state, name in card.samples.items()}
    assert np.bincount(sets["before"].conditional.labels).tolist() == [4] * 10
    for state in ("after", "oracle"):
        assert np.bincount(sets[state].conditional.labels, minlength=10)[3] == 0
    assert len(sets["after"].null.images) == len(sets["before"].null.images) == 6
    names = {measure.name for measure in card.measures}
    assert names >= {"fd_to_oracle", "fd_to_oracle_before", "forgotten_class_rate_null_oracle"}
    times = sample_times(run)
    assert evaluate(run, [oracle]) == card
    assert sample_times(run) == times

    delete(oracle, classes=("4",))
    with pytest.raises(ValueError, match="oracle"):
        evaluate(run, [oracle])


def test_says_what_could_not_be_compared(run: RunFolder) -> None:
    delete(run, fraction=0.1)
    card = evaluate(run)
    assert list(card.samples) == ["after"]
    assert any("run evaluate before forget" in note for note in card.notes)
    assert any("No oracle was given" in note for note in card.notes)
    assert not any(measure.name.startswith("forgotten_class_rate") for measure in card.measures)


def test_refuses_an_oracle_of_something_else(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was deleted from"):
        evaluate(run, [run])
    delete(run, classes=("3",))
    deleted, _ = deleted_from([run.path])
    with pytest.raises(ValueError, match="was not trained without exactly what was deleted"):
        evaluate(run, [run])
    with pytest.raises(ValueError, match="another recipe"):
        evaluate(run, [train(recipe("training.learning_rate=0.1"), tmp_path / "other", deleted)])
    oracle = train(run.config, tmp_path / "oracle", deleted)
    delete(run, classes=("4",))
    with pytest.raises(ValueError, match="was not trained without exactly what was deleted"):
        evaluate(run, [oracle])
    assert not run.scorecard_path.exists()


def test_another_judge_is_another_judge(run: RunFolder) -> None:
    one, other = evaluate(run), evaluate(run.with_overrides(["evaluation.judge.epochs=2"]))
    assert one.protocol["extractor_digest"] != other.protocol["extractor_digest"]


def test_another_sampler_makes_other_images(run: RunFolder) -> None:
    cards = evaluate(run), evaluate(run.with_overrides(["sampling.sampler=ddpm"]))
    images = [SampleSet.from_file(run.samples_path / card.samples["before"]).images for card in cards]
    assert not np.array_equal(*images)


def test_a_class_that_left_the_source_moves_no_label(tmp_path: Path) -> None:
    """People remove the files too: the classes that remain keep their meaning."""
    random = np.random.default_rng(0)
    for level, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(24):
            pixels = (110 * level + random.integers(0, 30, (8, 8))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    source = (f"data.source={tmp_path / 'images'}", "data.image_size=8", "data.channels=1")
    run = train(recipe(*source, "evaluation.judge.epochs=10", "training.batch_size=12"), tmp_path / "run")
    assert by_name(list(evaluate(run).measures))["retained_accuracy_before"].floor == 1, "dark from bright"
    delete(run, classes=("ant",))
    shutil.rmtree(tmp_path / "images" / "ant")
    card = evaluate(run)
    assert set(card.accuracy_per_class["after"]) == {"bee", "cat"}
    assert by_name(list(card.measures))["retained_accuracy_after"].floor == 1
    assert any("no longer holds" in note for note in card.notes)
