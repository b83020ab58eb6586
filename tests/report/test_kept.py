"""What the weights kept: when it is said, and how strongly."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pages import NASTY, Page, content, receipt

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.report.kept import KeptByWeights, kept_by_weights
from gen_unlearn.report.page import render_report

NULL = "forgotten_class_rate_null"


def card(share: float, oracle: float, *classes: str) -> Scorecard:
    measures = (
        Measure(NULL, share, "Share.", 0.01, 0.1, "chance"),
        Measure(f"{NULL}_oracle", oracle, "Share.", 0.01, 0.1, "chance"),
    )
    return Scorecard(measures, {"forgotten_classes": list(classes)})


def kept(share: float, oracle: float, *classes: str) -> KeptByWeights:
    found = kept_by_weights(card(share, oracle, *classes), (receipt(),))
    assert found is not None
    return found


def text_of(shown: Scorecard, level: str = "exemplar-only") -> str:
    receipts = (replace(receipt(), level=level),)
    html = render_report(replace(content(), scorecard=shown, receipts=receipts))
    assert NASTY not in html
    return " ".join(Page(html).text.split()).replace("\u00a0", " ")


def test_a_joint_core_that_keeps_a_class_is_named_near_the_top() -> None:
    text = text_of(card(0.124, 0.024, "3"))
    finding = "A joint core keeps producing class 3 at about 1 in 8 although its exemplars are gone."
    assert finding in text
    assert "12 ± 1 %" in text
    assert "2 ± 1 % (about 1 in 42)" in text
    assert text.index(finding) < text.index("Samples")


def test_another_level_does_not_speak_of_a_joint_core() -> None:
    text = text_of(card(0.124, 0.024, "3", NASTY), level="bit-exact")
    assert f"The weights keep producing the classes 3, {NASTY}, at about 1 in 8." in text
    assert "joint core" not in text


@pytest.mark.parametrize(("share", "oracle"), [(0.0, 0.0), (0.04, 0.02), (0.02, 0.3)])
def test_what_the_oracle_does_too_is_not_held_against_the_weights(share: float, oracle: float) -> None:
    assert not kept(share, oracle).more_than_expected
    assert "no more often than the oracle" in text_of(card(share, oracle, "3"))


def test_a_difference_beyond_its_error_is_held_against_the_weights() -> None:
    assert kept(0.02 + 2 * 0.01 * 2**0.5, 0.02).more_than_expected
    assert not kept(0.02 + 1.9 * 0.01 * 2**0.5, 0.02).more_than_expected


def test_names_few_classes_and_counts_many() -> None:
    assert kept(0.1, 0.0).classes == "the deleted class"
    assert kept(0.1, 0.0, *"123456").classes == "the 6 deleted classes"
    assert kept(0.0, 0.0, "3").one_in == ""


@pytest.mark.parametrize("share", [0.124, 0.09])
def test_without_an_oracle_the_weights_are_held_against_chance(share: float) -> None:
    whole = card(share, 0.0, "3")
    alone = replace(whole, measures=whole.measures[:1])
    found = kept_by_weights(alone, (receipt(),))
    assert found is not None
    assert found.more_than_expected == (share > 0.1)
    text = text_of(alone)
    joint = "A joint core keeps producing class 3 at about 1 in 8 although its exemplars are gone."
    assert (joint in text) == (share > 0.1)
    assert ("no more often than chance" in text) == (share < 0.1)
    assert "Images that show every class alike would give 10 %. No oracle was given" in text
    assert "trained without the deleted images, gives" not in text
    assert "Dotted line: the floor (10 %: chance)" in text


def test_chance_is_exceeded_by_more_than_the_error() -> None:
    for share, more in ((0.1 + 1.9 * 0.01, False), (0.1 + 2 * 0.01, True)):
        whole = card(share, 0.0, "3")
        found = kept_by_weights(replace(whole, measures=whole.measures[:1]), ())
        assert found is not None
        assert found.more_than_expected == more


def test_nothing_is_said_without_the_share_or_anything_to_compare_it_with() -> None:
    whole = card(0.1, 0.0, "3")
    assert kept_by_weights(replace(whole, measures=whole.measures[1:]), ()) is None
    no_chance = replace(whole.measures[0], floor=None)
    assert kept_by_weights(replace(whole, measures=(no_chance,)), ()) is None
    assert "What the weights kept" not in text_of(replace(whole, measures=whole.measures[1:]))


def test_an_ensemble_is_said_to_draw_without_a_class() -> None:
    shown = card(0.1, 0.1, "3")
    text = text_of(replace(shown, protocol=shown.protocol | {"null_images_drawn": "without a class"}))
    assert "Of the images made without a class, 10 ± 1 % are recognised as class 3" in text
    assert "without any exemplar" not in text
