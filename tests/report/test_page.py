import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import NASTY, Page, content, noise, scorecard
from PIL import Image

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.receipts import NOT_COVERED, PROMISES
from gen_unlearn.report.images import image_sheet, page_picture, save_grid
from gen_unlearn.report.numbers import format_details, format_floor, format_value, grouped
from gen_unlearn.report.page import ReportContent, render_report


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


@pytest.mark.parametrize(
    ("measure", "value", "floor"),
    [
        (Measure("fd", 12.345, "", 0.41, 3.127), "12.3\u00a0±\u00a00.4", "3.13"),
        (Measure("judge_accuracy", 0.9774, "", 0.0047, 0.991), "97.7\u00a0±\u00a00.5\u00a0%", "99.1\u00a0%"),
        (Measure("forgotten_class_rate_after", 0.0, "", 0.0), "0\u00a0%", ""),
        (Measure("seconds_train", 12345.6, ""), "12,346\u00a0s", ""),
        (Measure("membership_auc_loss_after", 0.6214, "", 0.018, 0.5), "0.62\u00a0±\u00a00.02", "0.5"),
        (Measure("membership_tpr_after", 0.034, "", 0.006, 0.01), "3.4\u00a0±\u00a00.6\u00a0%", "1\u00a0%"),
        (Measure("coverage_after", 0.91, "", 0.01), "91\u00a0±\u00a01\u00a0%", ""),
        (Measure("density_after", 0.91, "", 0.01), "0.91\u00a0±\u00a00.01", ""),
        (Measure("overhead", float("inf"), "", 0.1, 1.0), "inf", "1"),
    ],
)  # fmt: skip
def test_writes_the_digits_that_the_error_supports(measure: Measure, value: str, floor: str) -> None:
    assert (format_value(measure), format_floor(measure)) == (value, floor)


def test_writes_the_further_numbers_of_a_measure() -> None:
    details = {"p_value": 0.0312, "interval_high": 0.5, "interval_low": 0.25, "copies_of_retained": 0.0125}
    share = Measure("copies_share_after", 0.4, "", details=details)
    expected = "95 % interval 25 % to 50 %; p value 0.0312; copies of retained 1.25 %"
    assert format_details(share).replace("\u00a0", " ") == expected
    assert format_details(Measure("fd", 1.0, "", details={"images_needed": 5200.0})) == "Images needed 5,200"
    page = Page(render_report(replace(content(), scorecard=Scorecard((share,), {}))))
    assert expected in page.text.replace("\u00a0", " ")


def test_groups_keep_every_measure() -> None:
    groups = grouped(scorecard().measures)
    assert [m.name for m in groups["Fréchet distances"]] == [
        f"fd_retain_{s}" for s in ("before", "after", "oracle")
    ]
    assert [m.name for m in groups["Other measures"]] == ["strange_thing"]
    assert sum(len(members) for members in groups.values()) == len(scorecard().measures)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("fd_retain_after", "Fréchet distances"),
        ("fd_to_oracle", "Retrain gap"),
        ("retrain_gap", "Retrain gap"),
        ("kd_retain_after", "Other distances to real images"),
        ("recall_oracle", "Other distances to real images"),
        ("forgotten_probability_after", "Forgotten classes"),
        ("unlearning_accuracy_oracle", "Forgotten classes"),
        ("retained_accuracy_after", "Retained classes"),
        ("membership_auc_likelihood_ratio_random", "Membership"),
        ("copies_share_after", "Copies of deleted images"),
        ("copying_z_after", "Data copying"),
        ("mifid_after", "Data copying"),
        ("seconds_delete", "Cost"),
    ],
)
def test_the_longest_beginning_of_a_name_decides_its_group(name: str, group: str) -> None:
    assert list(grouped([Measure(name, 1.0, "")])) == [group]


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
