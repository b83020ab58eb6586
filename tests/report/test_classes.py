"""Heat maps of classes requested and recognised."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pages import NASTY, Page, content

from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.report.classes import MANY_CLASSES, NULL_TOKEN, OTHERS, class_maps
from gen_unlearn.report.page import render_report
from gen_unlearn.report.states import States

STATES = States.of([])

BEFORE = {
    "cat": {"cat": 9, "dog": 1, NASTY: 0},
    "dog": {"cat": 0, "dog": 10, NASTY: 0},
    NASTY: {"cat": 0, "dog": 2, NASTY: 8},
    NULL_TOKEN: {"cat": 5, "dog": 10, NASTY: 5},
}
AFTER = {name: counts for name, counts in BEFORE.items() if name != "dog"}


def card(confusion: dict[str, dict[str, dict[str, int]]], *deleted: str) -> Scorecard:
    return Scorecard((), {"forgotten_classes": list(deleted)}, confusion=confusion)


def many(classes: int) -> dict[str, dict[str, int]]:
    """Return a table in which class ``i`` is recognised in ``i`` of as many images as there are classes."""
    names = [f"c{label}" for label in range(classes)]
    return {
        name: dict.fromkeys(names, 0) | {names[label - 1]: classes - label, name: label}
        for label, name in enumerate(names)
    }


def test_rows_and_columns_are_the_same_in_every_state() -> None:
    maps = class_maps(card({"after": AFTER, "before": BEFORE}, "dog"), STATES)
    assert maps is not None
    assert [shown.state for shown in maps.maps] == ["before", "after"]
    assert maps.columns == ("cat", "dog", NASTY)
    for shown in maps.maps:
        assert [row.requested for row in shown.rows] == ["cat", "dog", NASTY, NULL_TOKEN]
    refused = maps.maps[1].rows[1]
    assert (refused.total, refused.cells) == (0, ())
    cat = maps.maps[0].rows[0]
    assert [(cell.count, cell.share, cell.kind) for cell in cat.cells] == [
        (9, 0.9, "hit"), (1, 0.1, "miss"), (0, 0.0, "miss"),
    ]  # fmt: skip
    assert cat.cells[1].tint == pytest.approx(90 * 0.1**0.5)
    assert {cell.kind for cell in maps.maps[0].rows[-1].cells} == {"any"}


def test_of_many_classes_the_deleted_and_the_worst_are_shown() -> None:
    table = many(100)
    after = {name: counts for name, counts in table.items() if name != "c99"}
    maps = class_maps(card({"before": table, "after": after}, "c99"), STATES)
    assert maps is not None
    worst = [f"c{label}" for label in range(MANY_CLASSES - 1)]
    assert maps.columns == (*worst, "c99", OTHERS)
    assert (maps.shown, maps.classes) == (MANY_CLASSES, 100)
    for shown in maps.maps:
        for row in shown.rows:
            assert sum(cell.count for cell in row.cells) == row.total
    first, second = maps.maps[0].rows[:2]
    assert first.cells[-2].count == 100, "c99 has a column"
    assert second.cells[0].count == 99
    assert sum(cell.count for cell in maps.maps[0].rows[-1].cells if cell.recognised == OTHERS) == 1


def test_without_tables_there_is_no_map() -> None:
    assert class_maps(card({}), STATES) is None
    assert class_maps(card({"after": {}}), STATES) is None


def test_the_page_shows_one_map_for_each_state() -> None:
    shown = replace(content(), scorecard=card({"before": BEFORE, "after": AFTER}, "dog"))
    html = render_report(shown)
    page = Page(html)
    assert NASTY not in html
    titles = [attrs["title"] for tag, attrs in page.tags if tag == "td" and "title" in attrs]
    assert "cat requested, dog recognised: 1 of 10" in titles
    assert f"null token requested, {NASTY} recognised: 5 of 20" in titles
    assert not any(title.endswith(": 0 of 10") for title in titles)
    assert page.text.count("refused") == 2, "in the map and in the samples"
    assert "deleted: dog" in page.text
    tables = [attrs.get("aria-label") for tag, attrs in page.tags if tag == "table"]
    assert "Classes requested and recognised, after" in tables
    assert "Classes requested" not in Page(render_report(content())).text


def test_the_page_folds_many_classes_and_says_what_it_leaves_out() -> None:
    page = Page(render_report(replace(content(), scorecard=card({"after": many(50)}))))
    assert "Only 40 of 50 classes are shown" in " ".join(page.text.split())
    assert "Heat maps of 40 classes" in page.text
