"""The report of a classifier's run: what it shows of which run, and what it never shows."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import CONFIGS, refused, works

from gen_unlearn.commands.evaluate_classifier import evaluate_classifier
from gen_unlearn.commands.forget import forget
from gen_unlearn.commands.oracles import find_oracles, oracle_seeds
from gen_unlearn.commands.report_classifier import (
    class_turn,
    collect_classifier,
    shown_held_out,
    spread_over_classes,
    vote_rows,
)
from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.train import train
from gen_unlearn.config import load_recipe
from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.pipelines.classification import SemiParametricPipeline
from gen_unlearn.report.classifier_page import ClassifierContent
from gen_unlearn.runs import RunFolder

TINY = (
    "training.images=1280",
    "training.batch_size=32",
    "training.learning_rate=0.01",
    "model.encoder.width=8",
    "model.encoder.depth=0",
    "model.key_dim=16",
)


def trained(path: Path, *overrides: str) -> RunFolder:
    return train(load_recipe(CONFIGS / "digits_spm_classifier.yaml", [*TINY, *overrides]), path)


def copied(run: RunFolder, path: Path) -> RunFolder:
    return RunFolder.open(Path(shutil.copytree(run.path, path)))


def deleted_from(run: RunFolder, *requests: ForgetRequest) -> RunFolder:
    for request in requests:
        forget(run, request.resolve(run).forget_set)
        run = RunFolder.open(run.path)
    return run


def collected(run: RunFolder, show_deleted: bool = False) -> ClassifierContent:
    return collect_classifier(run, Scorecard.from_file(run.scorecard_path), show_deleted)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that was evaluated before anything was deleted from it."""
    run = trained(tmp_path_factory.mktemp("report") / "fresh")
    evaluate_classifier(run)
    return run


@pytest.fixture(scope="module")
def run(fresh: RunFolder) -> RunFolder:
    """The run without class 3, evaluated beside two oracles."""
    run = deleted_from(copied(fresh, fresh.path.with_name("run")), ForgetRequest(classes=("3",)))
    evaluate_classifier(run, find_oracles(run, fresh.path.with_name("oracles"), oracle_seeds(run, 2)))
    return run


def test_the_command_writes_the_page_of_a_deletion(run: RunFolder, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    assert works("report", run.path, "--out", page, "--dry-run") == {"report": str(page)}
    assert not page.parent.exists()
    assert works("report", run.path, "--out", page) == {"report": str(page)}
    html = page.read_text(encoding="utf-8")
    for expected in (
        "<h1>Class 3 deleted from an image classifier</h1>", "146 images deleted in", "exemplar-only",
        "semi-parametric classifier, trained on digits", "cnn, width 8, depth 0", "none of class 3",
        "one mean key per class", "146 images in 1 request; 1,292 remain",
        "Prediction gap to retrained models",
        "Why: exemplars that carried the vote", "mean of 2 models", "never predicted", "prediction.vote",
    ):  # fmt: skip
        assert expected in html, expected
    assert html.count("<img") == 1
    assert "shows the deleted images" not in html
    works("report", run.path, "--out", page, "--show-deleted")
    html = page.read_text(encoding="utf-8")
    assert html.count("<img") == 2
    assert "8 of 146 deleted images" in html
    works("report", run.path)
    deleted_from(copied(run, tmp_path / "later"), ForgetRequest(classes=("4",)))
    assert not (tmp_path / "later" / "report.html").exists(), "it shows exemplars that may be deleted"


def test_a_page_is_refused_unless_it_shows_what_was_evaluated(run: RunFolder, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "run")
    line = refused("report", other.path, "--set", "prediction.vote=exemplars")
    assert "expected no prediction.* in a report" in line
    deleted_from(other, ForgetRequest(classes=("4",)))
    assert "was not evaluated yet" in refused("report", other.path)


def test_votes_are_those_that_were_evaluated(run: RunFolder, tmp_path: Path) -> None:
    nearest = copied(run, tmp_path / "run")
    evaluate_classifier(nearest.with_overrides(["prediction.vote=exemplars", "prediction.neighbours=5"]))
    found = collected(nearest)
    assert dict(found.summary)["Who votes"].startswith("the 5 exemplars with the highest scores")
    assert "vote: exemplars" in found.recipe_yaml


def test_shows_held_out_images_of_deleted_and_other_classes(run: RunFolder) -> None:
    found = collected(run)
    assert found.votes is not None
    assert found.votes.images == 8
    assert found.votes.description.count("true class 3, a deleted class, classified as") == 3
    assert "classified as 3" not in found.votes.description
    assert found.deleted_votes is None
    assert found.exemplars["3"] == 0
    split = run.load_split()
    shown = shown_held_out(run, split, {"3"})
    assert split.test.holds(shown.ids).all()
    assert not split.train.holds(shown.ids).any()
    assert len(set(shown.labels.tolist())) == 6
    again = collected(run).votes
    assert again is not None
    np.testing.assert_array_equal(np.asarray(found.votes.sheet), np.asarray(again.sheet))


def test_never_shows_a_deleted_image_unless_asked_to(run: RunFolder) -> None:
    split = run.load_split()
    some = split.test.select(np.flatnonzero(split.test.labels == 4)[:1])
    deleted_too = replace(split, test=split.train.select(np.flatnonzero(split.train.labels == 3)))
    assert len(shown_held_out(run, deleted_too, {"3"})) == 0
    (oracle,) = find_oracles(run, run.path.with_name("oracles"), [1])
    assert len(shown_held_out(oracle, deleted_too, set())) == 0, "left out of an oracle at the same request"
    assert len(shown_held_out(run, replace(split, test=some), {"3"})) == 1

    deleted = collected(run, show_deleted=True).deleted_votes
    assert deleted is not None
    assert deleted.images == 8
    assert deleted.description.count("true class 3, a deleted class, classified as") == 8


def test_exemplars_beside_an_image_are_none_that_were_deleted(run: RunFolder) -> None:
    pipeline, train = run.load_classifier(), run.load_split().train
    assert isinstance(pipeline, SemiParametricPipeline)
    held = {image.tobytes() for image in run.load_exemplars().images}
    for shown in (shown_held_out(run, run.load_split(), {"3"}), train.select(train.labels == 3)):
        rows, _ = vote_rows(run, pipeline, shown, {"3"})
        assert [row.picture.tobytes() for row in rows] == [image.tobytes() for image in shown.all_images()]
        for voter in (voter for row in rows for voter in row.voters):
            assert voter.class_name != "3"
            assert voter.picture is not None
            assert voter.picture.tobytes() in held


def test_before_a_deletion(fresh: RunFolder) -> None:
    found = collected(fresh, show_deleted=True)
    assert found.title == "An image classifier"
    assert found.headline == "Nothing has been deleted from it."
    assert list(found.captions) == ["before"]
    assert found.votes is not None
    assert found.votes.images == 8
    assert found.deleted_votes is None
    assert found.receipts == ()
    works("report", fresh.path)
    assert "What is promised" not in fresh.report_path.read_text(encoding="utf-8")


def test_a_parametric_classifier_has_accuracies_alone(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", "model.kind=parametric", "training.images=64")
    evaluate_classifier(plain)
    works("report", plain.path)
    html = plain.report_path.read_text(encoding="utf-8")
    assert '<h2 id="accuracies">Accuracy</h2>' in html
    assert "images cannot be deleted" in html
    for part in ("<img", "exemplars now", "Who votes", "What is promised", "Prediction gap to", "Receipts"):
        assert part not in html, part


def test_several_requests_and_a_run_without_any_exemplar(fresh: RunFolder, tmp_path: Path) -> None:
    some = copied(fresh, tmp_path / "some")
    some = deleted_from(some, ForgetRequest(classes=("3", "5")), ForgetRequest(fraction=0.01))
    evaluate_classifier(some)
    found = collected(some)
    assert found.title.startswith("Classes 3 and 5 and ")
    assert found.title.endswith(" other images deleted from an image classifier")
    assert "in 2 requests" in dict(found.summary)["Deleted"]
    assert dict(found.summary)["Exemplars left per class"].endswith("none of classes 3, 5")
    names = tuple(name for name in some.manifest.class_names if name not in "35")
    nothing = deleted_from(some, ForgetRequest(classes=names))
    evaluate_classifier(nothing)
    found = collected(nothing, show_deleted=True)
    assert found.title == "10 classes deleted from an image classifier"
    assert (found.votes, found.deleted_votes) == (None, None)
    assert dict(found.summary)["Exemplars left per class"] == "none"
    works("report", nothing.path)


@pytest.mark.parametrize("count", [1, 3, 8, 100])
def test_spreads_over_the_classes(count: int) -> None:
    labels = np.array([4, 4, 4, 0, 0, 9, 7, 4])
    np.testing.assert_array_equal(class_turn(labels), [0, 1, 2, 0, 1, 0, 0, 3])
    rows = spread_over_classes(labels, count)
    assert len(rows) == len(set(rows.tolist())) == min(count, len(labels))
    assert len(set(labels[rows].tolist())) == min(count, 4)
    assert len(spread_over_classes(labels[:0], count)) == 0
    if count == 3:
        np.testing.assert_array_equal(labels[rows], [0, 7, 9])
