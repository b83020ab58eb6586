"""Bars and ROC panels: what is drawn, where, and in whose colours."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from pages import NASTY, Page, content, scorecard

from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.report.bars import floor_caption, interval, state_bars
from gen_unlearn.report.page import render_report
from gen_unlearn.report.plots import comparison_plots
from gen_unlearn.report.roc import area_under, roc_panels, smallest_share
from gen_unlearn.report.states import States, measure_suffix
from gen_unlearn.report.svg import colour

STATES = States.of([])


def card(*measures: Measure, **fields: object) -> Scorecard:
    return replace(Scorecard(measures, {}), **fields)


def curve(shift: float, images: int = 400) -> dict[str, list[float]]:
    """Return the curve of a score whose members lie `shift` above the others."""
    noise = np.random.default_rng(0)
    members, others = noise.standard_normal(images) + shift, noise.standard_normal(images)
    thresholds = np.sort(np.concatenate([members, others]))[::-1]
    return {
        "fpr": [float((others >= threshold).mean()) for threshold in thresholds],
        "tpr": [float((members >= threshold).mean()) for threshold in thresholds],
    }


def test_bars_need_two_states() -> None:
    assert state_bars(scorecard(), "fd_retain", STATES) is not None
    assert state_bars(scorecard(), "forgotten_class_rate", STATES) is None
    unmeasured = Measure("x_after", float("nan"), "Nothing was generated.")
    assert state_bars(card(Measure("x_before", 1.0, "One."), unmeasured), "x", STATES) is None


def test_plots_take_all_their_colours_from_the_page() -> None:
    states = States.of(["folder one"])
    shown = card(
        *(
            Measure(f"membership_auc_loss_{name}", 0.6, "", 0.02)
            for name in ("before", "after", "oracle", "random", "folder_one")
        ),
        roc={"loss": {name: curve(0.5) for name in states.names}},
    )
    (panel,) = roc_panels(shown, states)
    for svg in (state_bars(shown, "membership_auc_loss", states), panel.svg):
        assert svg is not None
        for variable in ("before", "after", "oracle", "random", "extra-1", "text", "rule"):
            assert f"var(--{variable})" in svg, variable
        assert not re.search(r"#[0-9a-fA-F]{3,8}\b(?!\))|rgba?\(", svg)


def test_the_style_sheet_has_every_colour_in_both_themes() -> None:
    style = re.search(r"<style>(.*?)</style>", render_report(content()), re.DOTALL)
    assert style is not None
    for name in [*STATES.names, "one", "two", "three", "four"]:
        variable = States.of(["one", "two", "three", "four"]).variable(name)
        assert style.group(1).count(f"--{variable}: #") == 2, variable
        assert colour(variable).startswith("#")


def test_further_states_follow_and_repeat_colours_only_at_the_end() -> None:
    states = States.of(["b", "after", "a", "c", "d"])
    assert states.names == ("before", "after", "oracle", "random removal", "b", "a", "c", "d")
    assert len({states.variable(name) for name in states.names[:-1]}) == 7
    assert states.variable("d") == states.variable("b")
    with pytest.raises(ValueError, match="'x' is no state of this page"):
        states.variable("x")


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("random removal", "random"), ("SecMI", "secmi"), ("likelihood ratio", "likelihood_ratio")],
)
def test_measures_name_states_and_attacks_in_lower_case(name: str, suffix: str) -> None:
    assert measure_suffix(name) == suffix


@pytest.mark.parametrize(
    ("measure", "ends"),
    [
        (Measure("fd_x", 10.0, "", 1.0), (8.04, 11.96)),
        (Measure("fd_x", 10.0, ""), (10.0, 10.0)),
        (Measure("kd_x", -0.1, "", 0.1), (-0.296, 0.096)),
        (Measure("some_rate", 0.0, "", 0.01), (0.0, 0.0196)),
        (Measure("some_rate", 1.02, "", 0.02), (0.9808, 1.02)),
        (Measure("an_auc_x", 0.99, "", 0.01), (0.9704, 1.0)),
        (Measure("an_auc_x", 0.6, "", 0.01, details={"interval_low": 0.5, "interval_high": 0.8}), (0.5, 0.8)),
    ],
)
def test_whiskers_are_95_per_cent_intervals(measure: Measure, ends: tuple[float, float]) -> None:
    assert interval(measure) == pytest.approx(ends)


def test_an_area_is_drawn_around_chance_and_not_from_zero() -> None:
    areas = [Measure(f"membership_auc_loss_{state}", 0.62, "", 0.01, 0.5) for state in ("before", "after")]
    svg = state_bars(card(*areas), "membership_auc_loss", STATES)
    assert svg is not None
    ticks = [float(text) for text in re.findall(r">(0?\.?\d+\.?\d*)</text>", svg)]
    assert 0.5 in ticks
    assert min(ticks) > 0.3
    assert floor_caption(card(*areas), "membership_auc_loss", STATES) == ""


def test_says_what_the_dotted_lines_are_once() -> None:
    floors = {"before": 0.012, "after": 0.004, "oracle": 0.012}
    measures = [
        Measure(f"copies_share_{s}", 0.01, "", 0.002, floor, "control") for s, floor in floors.items()
    ]
    (plot,) = comparison_plots(card(*measures), STATES)
    assert plot.remark.replace("\u00a0", " ") == "Dotted line: the floor (1.2 %, 0.4 %: control)."
    assert floor_caption(card(Measure("x_after", 1.0, "")), "x", STATES) == ""


def test_the_area_of_a_curve_without_a_measure_is_its_own() -> None:
    rates = curve(1.0, images=5000)
    measured = Measure("membership_auc_secmi_random", 0.5, "", 0.02)
    share = Measure("membership_tpr_secmi_random", 0.011, "", 0.002)
    shown = card(measured, share, roc={"SecMI": {"random removal": curve(0.0), "after": rates}})
    (panel,) = roc_panels(shown, STATES)
    after, removal = panel.lines
    assert after.state == "after"
    assert float(after.area) == pytest.approx(0.7602, abs=0.01)  # Phi(1 / sqrt(2))
    assert (removal.area, removal.share_at_one_percent) == (
        "0.50\u00a0±\u00a00.02",
        "1.1\u00a0±\u00a00.2\u00a0%",
    )


def test_the_area_is_that_of_the_trapezoids() -> None:
    assert area_under(np.array([0.0, 0.0, 0.5, 1.0]), np.array([0.0, 0.4, 0.8, 1.0])) == pytest.approx(0.75)


def test_the_axes_begin_at_the_first_false_alarm_but_not_below_a_thousandth() -> None:
    assert smallest_share([np.array([0.0, 0.02, 1.0]), np.array([0.0, 0.05, 1.0])]) == 0.02
    assert smallest_share([np.array([0.0, 1e-5, 1.0])]) == 1e-3
    assert smallest_share([]) == 1e-3


@pytest.mark.parametrize(
    "rates",
    [{"fpr": [0.1], "tpr": [0.1, 0.2]}, {"fpr": [1.5], "tpr": [0.1]}, {"fpr": [0.5, 0.1], "tpr": [0.1, 0.2]},
     {"fpr": [float("nan")], "tpr": [0.1]}],
)  # fmt: skip
def test_refuses_a_damaged_curve(rates: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="PIA after"):
        roc_panels(card(roc={"PIA": {"after": rates}}), STATES)


def test_the_page_shows_a_panel_for_each_attack_and_escapes_its_name() -> None:
    roc = {"loss": {"after": curve(1.0), "oracle": curve(0.0)}, NASTY: {NASTY: curve(0.2)}}
    html = render_report(replace(content(), scorecard=replace(scorecard(), roc=roc)))
    page = Page(html)
    assert NASTY not in html
    assert "Can an attacker tell which images were deleted?" in page.text
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert sum(label.startswith("ROC curves") for label in labels) == 2
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert "Can an attacker" not in Page(render_report(content())).text
