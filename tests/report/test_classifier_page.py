"""The page of a classifier, from content that is made up."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from pages import NASTY, Page, noise, receipt
from PIL import Image

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.receipts import NOT_COVERED, PROMISES
from gen_unlearn.report.classifier_page import (
    ClassifierContent,
    VotesView,
    accuracy_rows,
    never_predicted,
    render_classifier_report,
)
from gen_unlearn.report.gaps import gap_groups
from gen_unlearn.report.states import States

STATES = {"before": "as it was", "after": "as it is", "oracle": f"retrained {NASTY}"}
SHEET = noise(20, 30, 3)


def gap(name: str, value: float, floor: float | None = 0.2, error: float = 0.01) -> Measure:
    details = {} if floor is None else {"indistinguishable": float(value <= floor)}
    return Measure(f"prediction_gap_{name}", value, f"PG_H <{name}>.", error, floor, "of two", details)


def scorecard(*gaps: Measure) -> Scorecard:
    kept, gone = {NASTY: 9, "b": 1}, {NASTY: 4, "b": 6}
    confusion = {
        "before": {NASTY: kept, "b": gone},
        "after": {NASTY: {NASTY: 10, "b": 0}, "b": {NASTY: 10, "b": 0}},
        "oracle": {NASTY: {NASTY: 20, "b": 0}, "b": {NASTY: 20, "b": 0}},
    }
    accuracies = [Measure(f"accuracy_forget_{state}", 0.875, "Share.", 0.02) for state in STATES]
    return Scorecard(
        (*accuracies, *gaps),
        {"forgotten_classes": ["b"], "images": {"forget": 1234}},
        {state: {name: row.get(name, 0) / sum(row.values()) for name, row in table.items()}
         for state, table in confusion.items()},
        notes=("One <u>note</u>.",),
        confusion=confusion,
    )  # fmt: skip


def content() -> ClassifierContent:
    return ClassifierContent(
        title=f"Class {NASTY}",
        headline="Two images deleted.",
        summary=(("Encoder", "cnn"),),
        captions=STATES,
        exemplars={NASTY: 7000, "b": 0},
        votes=VotesView(Image.fromarray(SHEET), 8, f"Votes {NASTY}"),
        deleted_votes=None,
        deleted_total=2,
        scorecard=scorecard(gap("forget", 0.1), gap("forget_before", 0.9)),
        receipts=(receipt(),),
        recipe_yaml="data: {name: <digits>}\n",
        recipe_digest="f" * 64,
    )


def undeleted() -> ClassifierContent:
    """Return the content for a run that nothing was deleted from."""
    card = scorecard()
    card = replace(card, protocol={"forgotten_classes": []}, confusion={"before": card.confusion["before"]})
    return replace(content(), captions={"before": "as trained"}, scorecard=card, receipts=(), title="It")


def text_of(shown: ClassifierContent) -> str:
    return " ".join(Page(render_classifier_report(shown)).text.split())


def test_shows_everything_that_it_is_given() -> None:
    text = text_of(content())
    for measure in content().scorecard.measures:
        assert measure.name in text
        assert measure.definition in text
    for expected in (
        f"Class {NASTY}", "Two images deleted.", "Encoder", "cnn", *STATES.values(), "7,000", "(1,234)",
        "88 ± 2 %", "what retraining without the deleted images gives", "One <u>note</u>.", "Deletion report",
        PROMISES["exemplar-only"], NOT_COVERED["exemplar-only"], "8 held-out images", "f" * 64,
        "data: {name: <digits>}", "3" * 64, "indistinguishable from a retrained model",
    ):  # fmt: skip
        assert expected in text, expected


def test_holds_the_sheet_of_votes_as_it_was_drawn() -> None:
    page = Page(render_classifier_report(content()))
    np.testing.assert_array_equal(page.pixels(f"Votes {NASTY}"), SHEET)


def test_loads_nothing_escapes_all_and_is_accessible() -> None:
    html = render_classifier_report(replace(content(), deleted_votes=content().votes))
    assert not re.search(r"https?:|url\((?!#)|@import", html)
    for raw in (NASTY, "<script>", "<u>", "<digits>", "<forget>"):
        assert raw not in html
    tags = Page(html).tags
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags}
    assert all(attrs["alt"] for tag, attrs in tags if tag == "img")
    assert all(attrs["aria-label"] for tag, attrs in tags if tag == "svg")
    assert all("scope" in attrs for tag, attrs in tags if tag == "th")
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in tags if "aria-labelledby" in attrs} <= set(ids)


def test_a_deleted_class_shows_as_never_predicted() -> None:
    assert never_predicted(content().scorecard) == {"before": set(), "after": {"b"}, "oracle": {"b"}}
    page = Page(render_classifier_report(content()))
    cells = [attrs for tag, attrs in page.tags if tag == "td" and attrs.get("class") == "never"]
    assert len([attrs for attrs in cells if attrs.get("title") == "b: never predicted"]) == 4
    assert page.text.count("never predicted") == 3, "in two states of the accuracy per class, and the key"
    assert "never predicted" not in text_of(undeleted()), "a class that is not deleted may have no hits"


def test_without_a_deletion_its_parts_are_left_out() -> None:
    text = text_of(undeleted())
    assert "Evaluation report" in text
    assert "Accuracy per class" in text
    for part in ("What is promised", "Prediction gap", "Receipts", "none of them was deleted", "Forgetting"):
        assert part not in text, part


def test_shows_deleted_images_under_a_notice_only() -> None:
    notice = "This section shows the deleted images themselves."
    assert notice not in text_of(content())
    text = text_of(replace(content(), deleted_votes=content().votes))
    assert text.index(notice) < text.index("8 of 2 deleted images")


def test_says_when_nothing_was_retrained() -> None:
    text = text_of(replace(content(), scorecard=scorecard()))
    assert "it is not known what retraining would have done" in text
    lone = text_of(replace(content(), scorecard=scorecard(gap("forget", 0.1, None))))
    assert "Two retrained models would give the floor" in lone
    assert "indistinguishable" not in lone


@pytest.mark.parametrize(
    ("after", "before", "expected"),
    [
        (gap("test", 0.2), gap("test_before", 0.5), "After: indistinguishable .* floor of 20 %[.]$"),
        (gap("test", 0.2), gap("test_before", 0.1), "indistinguishable .* do not show what the deletion did"),
        (gap("test", 0.3), gap("test_before", 0.5), "After: above the floor of 20 %[.]$"),
        (
            gap("test", 0.21),
            gap("test_before", 0.5),
            "above the floor of 20 %, which lies inside its 95 % int",
        ),
    ],
)
def test_reads_a_gap_by_its_floor(after: Measure, before: Measure, expected: str) -> None:
    (group,) = gap_groups(Scorecard((after, before), {}), States.of([]))
    (plot,) = group.plots
    assert plot.heading == "Held-out images of retained classes"
    assert re.search(expected, plot.remark.replace("\u00a0", " "))
    assert "before" in plot.svg


def test_each_kind_of_retrained_models_has_its_plots() -> None:
    names = ("forget", "forget_before", "held_out", "forget_parametric", "forget_parametric_before")
    measures = (*(gap(name, 0.3) for name in names), gap("excess_forget", 0.1), gap("retain", float("nan")))
    oracles, parametric = gap_groups(Scorecard(measures, {}), States.of([]))
    assert [plot.heading for plot in oracles.plots] == ["Deleted images", "All held-out images"]
    assert [plot.heading for plot in parametric.plots] == ["Deleted images"]
    assert "without exemplars" in parametric.heading


def test_accuracies_are_in_the_order_of_the_states() -> None:
    (row,) = accuracy_rows(content().scorecard, STATES)
    assert [state for state, _ in row.cells] == list(STATES)
    assert (row.heading, row.images) == ("Deleted images", 1234)
    (row,) = accuracy_rows(content().scorecard, {"after": "", "parametric": ""})
    assert [measure is None for _, measure in row.cells] == [False, True]
    assert accuracy_rows(Scorecard((), {}), STATES) == []


def test_folds_many_classes() -> None:
    names = [f"class {number}" for number in range(50)]
    table = {name: {name: 3, names[0]: 1} for name in names}
    accuracy = dict.fromkeys(names, 0.75)
    card = Scorecard((), {"forgotten_classes": ["class 7"]}, {"after": accuracy}, confusion={"after": table})
    shown = replace(content(), scorecard=card, exemplars=dict.fromkeys(names, 5), captions={"after": "now"})
    text = text_of(shown)
    assert "Only 40 of 50 classes are shown" in text
    assert "50 classes" in text


def test_same_content_gives_the_same_page() -> None:
    assert render_classifier_report(content()) == render_classifier_report(content())


def test_an_ensemble_is_not_said_to_vote() -> None:
    card = scorecard()
    held_out = Measure("accuracy_forget_class_test_after", 0.0, "Share.")
    shown = replace(content(), scorecard=replace(card, measures=(*card.measures, held_out)), votes=None)
    assert "0 where exemplars vote" in text_of(shown)
    ensemble = text_of(replace(shown, held="images"))
    assert "no adapter that answers was fit on an image of such a class" in ensemble
    assert "images now" in ensemble
    assert "exemplars vote" not in ensemble
    assert "exemplars now" not in ensemble
