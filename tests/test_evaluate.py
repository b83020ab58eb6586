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

from gen_unlearn.commands.add import add
from gen_unlearn.commands.evaluate import evaluate
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.report import write_report
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.train import deleted_from, train
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.data import IndexedImages, Split
from gen_unlearn.image_sets import ImageArray
from gen_unlearn.judging.classes import accuracy_per_class, measure_forgetting
from gen_unlearn.judging.copies import measure_copies
from gen_unlearn.judging.evidence import Deletion, Evidence, Measurer, Recogniser, stratified_order
from gen_unlearn.judging.quality import (
    measure_accuracy,
    measure_folders,
    measure_quality,
    why_unmeasured,
)
from gen_unlearn.metrics.estimate import mean_error
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.repro import image_ids
from gen_unlearn.runs import RunFolder
from gen_unlearn.samples import NULL_LABEL, SampleSet
from gen_unlearn.training.classifier import JudgeClassifier, JudgeFeatures, train_judge
from gen_unlearn.training.judge_config import JudgeConfig

FEW = ComparisonConfig(permutations=20)
RETAINED = (0, 1, 2, 4, 5, 6, 7, 8, 9)
DIGITS = Path(__file__).parents[1] / "configs" / "digits_spm.yaml"
TINY = (
    *TINY_OVERRIDES,
    "evaluation.images_per_class=4",
    "evaluation.null_images=6",
    "evaluation.membership.images=8",
    "evaluation.membership.exemplars_per_class=4",
    "evaluation.membership.attack.loss_timesteps=[100, 200]",
    "evaluation.membership.attack.loss_draws=1",
    "evaluation.membership.attack.secmi_stride=50",
)
WITHOUT_ATTACKS = "evaluation.membership.images=0"


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


@pytest.fixture(scope="module")
def judged(trained: RunFolder) -> RunFolder:
    """The run once it was evaluated; tests work on copies."""
    run = copied(trained, trained.path.with_name("judged"))
    evaluate(run)
    return run


def copied(run: RunFolder, path: Path) -> RunFolder:
    return RunFolder.open(Path(shutil.copytree(run.path, path)))


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    return copied(trained, tmp_path / "run")


@pytest.fixture
def evaluated(judged: RunFolder, tmp_path: Path) -> RunFolder:
    return copied(judged, tmp_path / "run")


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
    found = by_name([*measure_quality(evidence, measurer, FEW), *measure_accuracy(evidence, judge)])
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
    found = by_name([*measure_quality(evidence, measurer, FEW), *measure_accuracy(evidence, judge)])
    assert found["fd_retain_after"].value == pytest.approx(0, abs=1e-6)
    assert found["retained_accuracy_after"].value == found["retained_accuracy_after"].floor


def test_a_refused_class_lowers_the_rate_and_the_null_token_is_apart(
    judge: Recogniser, measurer: Measurer, digits_split: Split
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
    found = by_name(measure_forgetting(evidence, judge, measurer, 5, ComparisonConfig()))
    assert found["forgotten_class_rate_before"].value == 1
    assert found["forgotten_class_rate_after"].value == 0
    assert found["forgotten_class_rate_null"].value == 1
    assert found["forgotten_class_rate_null"].floor == 0.1
    assert accuracy_per_class(judge, nulls, sure.class_names) == {str(d): 1.0 for d in range(10) if d != 3}
    nothing = replace(evidence, deletion=Deletion((), tuple(range(10)), empty, sure))
    assert measure_forgetting(nothing, judge, measurer, 5, ComparisonConfig()) == []


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Frechet distance by eigenvalues of the product of covariances."""
    first, second = (np.cov(features, rowvar=False) for features in (one, other))
    roots = np.sqrt(np.linalg.eigvals(first @ second).real.clip(min=0))
    apart = one.mean(axis=0) - other.mean(axis=0)
    return float(apart @ apart + np.trace(first) + np.trace(second) - 2 * roots.sum())


def change_of(evidence: Evidence, measurer: Measurer) -> Measure | None:
    return by_name(measure_quality(evidence, measurer, FEW)).get("fd_retain_change")


def test_the_same_images_change_nothing_exactly(measurer: Measurer, digits_split: Split) -> None:
    some = as_samples(digits_split.train.select(np.arange(100)))
    fewer_than_features = as_samples(digits_split.train.select(np.arange(12)))
    for samples in (some, fewer_than_features):
        change = change_of(without_deletion(digits_split, before=samples, after=samples), measurer)
        assert change is not None
        assert (change.value, change.standard_error, change.floor) == (0, 0, 0)


def test_the_change_has_the_error_of_pairs(measurer: Measurer, digits_split: Split) -> None:
    before = as_samples(digits_split.train.select(np.arange(200)))
    noise = np.random.default_rng(0).integers(-40, 41, before.images.shape)
    noisy = np.clip(before.images.astype(np.int64) + noise, 0, 255).astype(np.uint8)
    after = replace(before, images=noisy)
    evidence = without_deletion(digits_split, before=before, after=after)
    found = by_name(measure_quality(evidence, measurer, FEW))
    change = found["fd_retain_change"]
    one, other, real = (
        measurer.features("images", images).array().astype(np.float64)
        for images in (before.images, after.images, digits_split.test.images[:])
    )
    assert change.value == pytest.approx(distance(other, real) - distance(one, real), rel=1e-4)
    left_out = [
        distance(np.delete(other, row, axis=0), real) - distance(np.delete(one, row, axis=0), real)
        for row in range(len(one))
    ]
    jackknife = mean_error((len(one) - 1) * np.array(left_out), before.labels)  # of images in fixed numbers
    assert change.standard_error == pytest.approx(jackknife, rel=0.15)
    apart = math.hypot(*(found[f"fd_retain_{state}"].standard_error or 0 for state in ("before", "after")))
    assert change.standard_error is not None
    assert change.standard_error < 0.8 * apart
    assert "same noise" in change.definition

    other_numbers = replace(after, indices=after.indices[::-1].copy())
    unpaired = change_of(without_deletion(digits_split, before=before, after=other_numbers), measurer)
    assert unpaired is not None
    assert unpaired.standard_error == pytest.approx(apart)
    assert "quadrature" in unpaired.definition
    fewer = as_samples(digits_split.train.select(np.arange(150)))
    assert change_of(without_deletion(digits_split, before=before, after=fewer), measurer) is None


def test_too_few_images_for_pairs_have_independent_errors(measurer: Measurer, digits_split: Split) -> None:
    images = digits_split.train.select(np.arange(12))  # of 16 features
    before = as_samples(images)
    after = replace(before, images=255 - before.images)
    change = change_of(without_deletion(digits_split, before=before, after=after), measurer)
    assert change is not None
    assert "quadrature" in change.definition


def test_null_images_of_the_deleted_class_are_told_from_noise(
    judge: Recogniser, measurer: Measurer, digits_split: Split
) -> None:
    train, test = digits_split.train, digits_split.test
    deletion = Deletion((3,), RETAINED, train.select(train.labels == 3), train.select(train.labels != 3))
    threes = test.images[test.labels == 3]
    noise = np.random.default_rng(0).integers(0, 256, threes.shape, dtype=np.uint8)
    found = {}
    for name, images in (("real", deletion.images.images[: len(threes)]), ("noise", noise)):
        null = SampleSet(images, np.full(len(images), NULL_LABEL), np.arange(len(images)))
        evidence = Evidence({"after": null, "oracle": null}, (), (), deletion, test)
        found[name] = by_name(measure_forgetting(evidence, judge, measurer, 5, FEW))
    real, noisy = found["real"], found["noise"]
    for measures in found.values():
        for name in ("fd_forgotten_null", "coverage_forgotten_null"):
            assert measures[f"{name}_oracle"].value == measures[name].value
            assert "a UA of 1 too" in measures[name].definition
            assert "deleted training images of it" in measures[name].floor_definition
    assert real["fd_forgotten_null"].value < 3 * real["fd_forgotten_null"].floor
    assert noisy["fd_forgotten_null"].value > 20 * noisy["fd_forgotten_null"].floor
    assert real["coverage_forgotten_null"].value > 0.7
    assert noisy["coverage_forgotten_null"].value < 0.3
    assert noisy["unlearning_accuracy_after"].value > 0.8, "noise passes for forgotten"

    many = ComparisonConfig(neighbours=len(threes) // 2, permutations=20)
    names = by_name(measure_forgetting(evidence, judge, measurer, 5, many))
    assert not any("forgotten_null" in name for name in names), "too few held-out images for the floor"


def test_floors_are_of_training_images_where_there_are_enough(
    measurer: Measurer, digits_split: Split
) -> None:
    evidence = without_deletion(digits_split, before=as_samples(digits_split.test))
    count = 100
    images = digits_split.test.images[:count]
    small = ImageArray("small", images)
    large = ImageArray("large", np.concatenate([digits_split.train.images[:], images]))
    found = by_name(measure_folders([small, large], evidence, measurer, FEW))
    stand_in = digits_split.train.select(stratified_order(digits_split.train)[:count])
    by_hand = distance(
        measurer.features("training", stand_in.images[:]).array().astype(np.float64),
        measurer.features("held out", digits_split.test.images[:]).array().astype(np.float64),
    )
    assert found["fd_small"].floor == pytest.approx(by_hand, rel=1e-4)
    assert "100 retained training images" in found["fd_small"].floor_definition
    assert "parts of the reference" in found["fd_large"].floor_definition
    assert "held-out real images of the retained classes" in found["fd_small"].definition


@pytest.mark.parametrize(
    ("neighbours", "generated", "words"),
    [
        (5, (40, 100), ""),
        (5, (40, 6), "7 generated images of the retained classes, and there are 6"),
        (60, (62,), "62 held-out images of the retained classes, and there are 61"),
        (40, (2000,), "82 held-out images of the retained classes, and there are 61"),
        (29, (2000,), ""),
    ],
)
def test_says_beforehand_that_images_are_too_few(
    digits_split: Split, neighbours: int, generated: tuple[int, ...], words: str
) -> None:
    deletion = Deletion(
        (), tuple(range(10)), digits_split.train.select(np.empty(0, dtype=np.int64)), digits_split.train
    )
    test = digits_split.test.select(np.arange(61))
    why = why_unmeasured(deletion, test, generated, ComparisonConfig(neighbours=neighbours))
    assert words in why
    assert bool(words) == bool(why)


def test_copies_of_deleted_images_are_found(digits_split: Split) -> None:
    data = digits_split.train
    deletion = Deletion((), tuple(range(10)), data.select(np.arange(20)), data.select(np.arange(20, 200)))
    states = {"before": as_samples(deletion.images), "after": as_samples(digits_split.test)}
    found = by_name(measure_copies(Evidence(states, (), (), deletion, digits_split.test)))
    assert found["nearest_deleted_before"].value == 0
    assert found["nearest_deleted_after"].value > 0.5
    assert found["nearest_deleted_before"].floor != 0


def test_evaluation_keeps_and_reuses_what_it_made(evaluated: RunFolder) -> None:
    run = evaluated
    first = Scorecard.from_file(run.scorecard_path)
    (judge,) = run.metrics_path.glob("judge-*/config.json")
    times, trained = sample_times(run), judge.stat().st_mtime_ns
    assert len(times) == 1
    assert evaluate(run) == first == Scorecard.from_file(run.scorecard_path)
    assert sample_times(run) == times
    assert judge.stat().st_mtime_ns == trained
    assert list(first.samples) == ["before"]
    assert all(math.isfinite(measure.value) and measure.definition for measure in first.measures)


def test_the_whole_comparison(evaluated: RunFolder, tmp_path: Path) -> None:
    run = evaluated.with_overrides([WITHOUT_ATTACKS])
    before = Scorecard.from_file(run.scorecard_path)
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
    card = evaluate(run.with_overrides([WITHOUT_ATTACKS]))
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


def test_another_judge_is_another_judge(evaluated: RunFolder) -> None:
    one = Scorecard.from_file(evaluated.scorecard_path)
    other = evaluate(evaluated.with_overrides(["evaluation.judge.epochs=2", WITHOUT_ATTACKS]))
    assert one.protocol["extractor_digest"] != other.protocol["extractor_digest"]


def test_another_sampler_makes_other_images(evaluated: RunFolder) -> None:
    run, first = evaluated, Scorecard.from_file(evaluated.scorecard_path)
    cards = first, evaluate(run.with_overrides(["sampling.sampler=ddpm"]))
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
    assert any("none of the 12 deleted images" in note for note in card.notes)
    assert any("ant is generated was not measured" in note for note in card.notes)
    names = {measure.name for measure in card.measures}
    assert not any(name.startswith(("forgotten_", "unlearning_")) for name in names), "no judge knows an ant"


def test_features_of_training_images_go_with_a_deletion(run: RunFolder) -> None:
    evaluate(run.with_overrides(["evaluation.features=random-conv"]))
    assert any(run.features_path.iterdir())
    delete(run, classes=("3",))
    assert not run.features_path.exists(), "also where samples and judge are kept"
    assert run.samples_path.exists()
    assert not any("features" in what for what in run.receipts()[-1].left)


def test_the_reference_of_a_plain_oracle_has_no_deleted_class(run: RunFolder, tmp_path: Path) -> None:
    delete(run, classes=("3",))
    plain = train(recipe("model.kind=class-conditional"), tmp_path / "plain", *deleted_from([run.path]))
    card = evaluate(plain)
    held_out = plain.load_split().test
    assert card.protocol["reference"]["images"] == int((held_out.labels != 3).sum())


def test_before_holds_what_was_added_before_the_deletion(run: RunFolder) -> None:
    new = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    names = run.manifest.class_names
    add(run, IndexedImages(new, np.zeros(2, dtype=np.int64), image_ids(new), names, ("a", "b")))
    run = run.with_overrides([WITHOUT_ATTACKS])
    before = evaluate(run).samples["before"]
    delete(run, fraction=0.1)
    assert evaluate(run).samples["before"] == before


def test_a_run_without_any_exemplar_is_judged_by_its_null_token(evaluated: RunFolder) -> None:
    run = evaluated
    delete(run, classes=tuple(run.manifest.class_names))
    card = evaluate(run)
    after = SampleSet.from_file(run.samples_path / card.samples["after"])
    assert set(after.labels.tolist()) == {NULL_LABEL}
    assert card.accuracy_per_class["after"] == {}
    assert list(card.confusion["after"]) == ["null token"]
    assert any("no class is left" in note for note in card.notes)
    found = by_name(list(card.measures))
    assert found["forgotten_class_rate_before"].value > 0 == found["forgotten_class_rate_after"].value
    assert {"forgotten_class_rate_null", "membership_auc_loss_after", "seconds_delete"} <= set(found)
    assert {"nearest_deleted_after", "copies_share_after"} <= set(found)
    assert found["nearest_deleted_after"].floor is None, "no retained image is left to compare with"
    assert not any(name.startswith(("fd_retain", "kd_", "precision", "retained_")) for name in found)
    write_report(run, run.path / "report.html")


def test_too_few_held_out_images_leave_the_distances_out(evaluated: RunFolder, tmp_path: Path) -> None:
    run = evaluated.with_overrides(["evaluation.comparison.neighbours=15", WITHOUT_ATTACKS])
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(20):
        Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(folder / f"{number}.png")
    card = evaluate(run, images=[folder])
    assert "fd_retain_before" in by_name(list(card.measures)), "40 generated images, 898 held-out ones"
    delete(run, classes=tuple("12345678"))
    card = evaluate(run, images=[folder])
    found = by_name(list(card.measures))
    assert any("at least 17 generated images" in note for note in card.notes)
    assert not any(name.startswith(("fd_retain", "fd_mine", "precision", "mifid")) for name in found)
    assert {"retained_accuracy_after", "forgotten_class_rate_null", "copies_share_after"} <= set(found)


def test_refuses_a_set_of_images_that_gives_a_measure_the_name_of_another(
    evaluated: RunFolder, tmp_path: Path
) -> None:
    run, folder = evaluated, tmp_path / "retain_before"
    folder.mkdir()
    for number in range(8):
        Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(folder / f"{number}.png")
    run.scorecard_path.unlink()
    with pytest.raises(ValueError, match=r"one measure of each name, got more of fd_retain_before, .*rename"):
        evaluate(run, images=[folder])
    assert not run.scorecard_path.exists()


def test_says_that_the_judge_saw_the_deleted_images(judged: RunFolder) -> None:
    card = Scorecard.from_file(judged.scorecard_path)
    assert "deleted images included" in str(card.protocol["extractor"])
    assert "deleted images included" in by_name(list(card.measures))["fd_retain_before"].definition
