import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.receipts import PROMISES, DeletionReceipt
from gen_unlearn.report.images import image_sheet, page_picture, save_grid
from gen_unlearn.report.numbers import format_floor, format_value, grouped
from gen_unlearn.report.page import (
    NOT_COVERED,
    DeletedView,
    GridRow,
    Neighbour,
    ReportContent,
    StateView,
    render_report,
)
from gen_unlearn.report.plots import state_bars

NASTY = '<b>&"</b>'
VOID = {"meta", "img", "br", "hr"}


class Page(HTMLParser):
    """Collect text, attributes and pictures of a page, and check that its elements nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.open = "", [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def pixels(self, alt: str) -> np.ndarray:
        """Decode the one picture with this alternative text."""
        (source,) = (attrs["src"] for tag, attrs in self.tags if tag == "img" and attrs["alt"] == alt)
        kind, _, encoded = source.partition(",")
        assert kind == "data:image/png;base64"
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def scorecard() -> Scorecard:
    rows = [
        Measure("fd_retain_before", 12.84, "Distance <before>.", 0.41, 3.127, "two halves & of the data"),
        Measure("fd_retain_after", 13.3, "Distance after.", 0.41, 3.127, "two halves & of the data"),
        Measure("fd_retain_oracle", 12.6, "Distance oracle.", 0.41, 3.127, "two halves & of the data"),
        Measure("forgotten_class_rate_after", 0.0, "Share of it.", 0.005, 0.0024, "false alarms"),
        Measure("seconds_delete", 0.00213, "Wall time."),
        Measure("strange_thing", float("nan"), "Something else."),
    ]
    accuracy = {"after": {"0": 0.97}, "oracle": {"0": 0.98, NASTY: 1.0}}
    protocol = {"sampler": {"steps": 50}, "seeds": [0, 1], "judge": "<i>cnn</i>"}
    return Scorecard(tuple(rows), protocol, accuracy, notes=("One <u>note</u>.",))


def receipt() -> DeletionReceipt:
    return DeletionReceipt(
        artefact="exemplar store",
        level="exemplar-only",
        reason="<script>alert(1)</script>",
        ids=("ab" * 16, "cd" * 16),
        forget_digest="1" * 64,
        removed=2,
        removed_per_class={NASTY: 2},
        remaining=7,
        digest_before="2" * 64,
        digest_after="3" * 64,
        seconds=0.002,
        created="2025-01-02T03:04:05+00:00",
        versions={"torch": "2.8"},
    )


def content(channels: int = 1) -> ReportContent:
    """Return a report without the state before, with a class that only the oracle still knows."""
    shape = (3, 8, 6, channels)
    after = (GridRow("0", noise(*shape)), GridRow(NASTY, None, "refused: no exemplar is left"))
    oracle = (
        GridRow(NASTY, noise(*shape, seed=2)),
        GridRow("null token", noise(*shape, seed=3), "no exemplar"),
    )
    neighbour = Neighbour("after", noise(8, 6, channels, seed=5), 1.2345)
    return ReportContent(
        title=f"Digits {NASTY}",
        summary=(("removed", "2 of 9"),),
        states=(StateView("after", "once deleted", after), StateView("oracle", "retrained", oracle)),
        deleted=(DeletedView("first", noise(8, 6, channels, seed=4), (neighbour,)),),
        deleted_total=2,
        scorecard=scorecard(),
        receipts=(receipt(),),
        recipe_yaml="data: {name: <digits>}\n",
        recipe_digest="f" * 64,
    )


def test_shows_everything_that_it_is_given() -> None:
    page = Page(render_report(content()))
    text = " ".join(page.text.split())
    for measure in scorecard().measures:
        assert measure.name in text
        assert measure.definition in text
        assert measure.floor_definition in text
    for expected in (
        "12.8 ± 0.4", "0.0 ± 0.5 %", "0.24 %", "refused: no exemplar is left", "not sampled", "null token",
        "1 of 2 deleted images", "1.23", "sampler.steps", "50", "0, 1", "One <u>note</u>.", "97.0 %",
        PROMISES["exemplar-only"], NOT_COVERED["exemplar-only"], "ab" * 16, "3" * 64, "2.00 ms", "f" * 64,
        "data: {name: <digits>}", "removed", "2 of 9", "once deleted", "torch 2.8",
    ):  # fmt: skip
        assert expected in text, expected


def test_loads_nothing_and_runs_nothing() -> None:
    html = render_report(content())
    assert not re.search(r"https?:|url\((?!#)|@import", html)
    page = Page(html)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert (attrs.get("src") or "data:").startswith("data:")
        assert (attrs.get("href") or attrs.get("xlink:href") or "#").startswith("#")
        assert not any(name.startswith("on") for name in attrs)


def test_is_accessible() -> None:
    tags = Page(render_report(content())).tags
    assert all(attrs["alt"] for tag, attrs in tags if tag == "img")
    assert all(attrs["aria-label"] for tag, attrs in tags if tag == "svg")
    assert all("scope" in attrs for tag, attrs in tags if tag == "th")
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in tags if "aria-labelledby" in attrs} <= set(ids)


def test_escapes_every_string() -> None:
    html = render_report(content())
    for raw in (NASTY, "<script>", "<before>", "<u>", "<i>", "<digits>"):
        assert raw not in html
    assert f"Digits {NASTY}" in Page(html).text


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_hold_the_given_pixels(channels: int) -> None:
    given = content(channels)
    page = Page(render_report(given))
    strip = page.pixels("3 generated images, class 0, after")
    for index, image in enumerate(given.states[0].rows[0].images):
        shown = strip[:8, 7 * index : 7 * index + 6]
        np.testing.assert_array_equal(shown[..., :-1], image)
        assert (shown[..., -1] == 255).all()
    np.testing.assert_array_equal(
        page.pixels("deleted training image: first")[..., :-1], given.deleted[0].image
    )
    nearest = page.pixels("nearest generated image, after")
    np.testing.assert_array_equal(nearest[..., :-1], given.deleted[0].neighbours[0].image)


def test_leaves_out_what_there_is_not() -> None:
    empty = ReportContent("Nothing", (), (), (), 0, Scorecard((), {}), (), "", "0" * 64)
    page = Page(render_report(empty))
    assert "Nothing is promised" in page.text
    assert not {"table", "img", "svg"} & {tag for tag, _ in page.tags}
    assert (
        "refused" not in Page(render_report(replace(content(), scorecard=Scorecard((), {}), states=()))).text
    )


def test_same_content_gives_the_same_page() -> None:
    assert render_report(content()) == render_report(content())


def test_plot_needs_two_states_and_follows_the_theme() -> None:
    svg = state_bars(scorecard(), "fd_retain")
    assert svg is not None
    assert state_bars(scorecard(), "forgotten_class_rate") is None
    assert all(f"var(--{name})" in svg for name in ("before", "after", "oracle", "text"))
    assert "#00000" not in svg
    unmeasured = Measure("x_after", float("nan"), "Nothing was generated.")
    assert state_bars(Scorecard((Measure("x_before", 1.0, "One."), unmeasured), {}), "x") is None


@pytest.mark.parametrize(
    ("measure", "value", "floor"),
    [
        (Measure("fd", 12.345, "", 0.41, 3.127), "12.3\u00a0±\u00a00.4", "3.13"),
        (Measure("judge_accuracy", 0.9774, "", 0.0047, 0.991), "97.7\u00a0±\u00a00.5\u00a0%", "99.1\u00a0%"),
        (Measure("forgotten_class_rate_after", 0.0, "", 0.0), "0\u00a0%", ""),
        (Measure("seconds_train", 12345.6, ""), "12,346\u00a0s", ""),
        (Measure("overhead", float("inf"), "", 0.1, 1.0), "inf", "1"),
    ],
)  # fmt: skip
def test_writes_the_digits_that_the_error_supports(measure: Measure, value: str, floor: str) -> None:
    assert (format_value(measure), format_floor(measure)) == (value, floor)


def test_groups_keep_every_measure() -> None:
    groups = grouped(scorecard().measures)
    assert [m.name for m in groups["Fréchet distances"]] == [
        f"fd_retain_{s}" for s in ("before", "after", "oracle")
    ]
    assert [m.name for m in groups["Other measures"]] == ["strange_thing"]
    assert sum(len(members) for members in groups.values()) == len(scorecard().measures)


def test_sheet_enlarges_small_images_by_whole_pixels(tmp_path: Path) -> None:
    images = noise(5, 8, 8, 1)
    save_grid(tmp_path / "sheet.png", images, columns=3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (8 * 17, 8 * 26, 2)
    np.testing.assert_array_equal(sheet[8 * 9 :: 8, 8 * 9 : 8 * 17 : 8, 0], images[4, ..., 0])
    assert (sheet[8 * 9 :, 8 * 18 :, 1] == 0).all()
    assert image_sheet(images, columns=10, scale=1).size == (89, 8)
    assert image_sheet(noise(2, 64, 64, 3), columns=2).size == (132, 64)


def test_page_shrinks_large_images() -> None:
    assert page_picture(noise(2, 512, 256, 3), columns=2).height == 128
    assert page_picture(noise(2, 512, 256, 1), columns=2).width == 2 * 64 + 4


@pytest.mark.parametrize(
    "bad", [noise(3, 8, 8), noise(3, 8, 8, 2), noise(0, 8, 8, 1), np.zeros((1, 8, 8, 3))]
)
def test_refuses_what_it_cannot_show(bad: np.ndarray) -> None:
    for call in (lambda: image_sheet(bad, 2), lambda: page_picture(bad)):
        with pytest.raises(ValueError, match="expected at least one image as uint8"):
            call()


def test_refuses_a_sheet_without_columns() -> None:
    with pytest.raises(ValueError, match="columns >= 1"):
        image_sheet(noise(1, 8, 8, 1), 0)
