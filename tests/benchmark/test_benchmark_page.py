from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations

import pytest
from benchmark_summaries import COLUMNS, METHODS, small_summary, with_pools
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from gen_unlearn.benchmark.labels import place_labels
from gen_unlearn.benchmark.page import render_benchmark
from gen_unlearn.benchmark.plots import Point, benchmark_plots, pareto_front, plot_points
from gen_unlearn.benchmark.summary import RETRAINED, SECOND_RETRAINED

VOID = {"meta", "br", "wbr", "hr"}


class Reader(HTMLParser):
    """Collect the cells of the first table and all text, and check that elements nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.classes: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.classes += (dict(attrs).get("class") or "").split()
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "tr" in self.open and self.rows[-1]:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def html() -> str:
    return render_benchmark(small_summary(METHODS, designs=("scrub",)), COLUMNS)


def test_page_holds_every_row_and_escapes_names(html: str) -> None:
    page = Reader(html)
    rows = {row[0].strip(): row for row in reversed(page.rows) if len(row) > 1}  # the first of a name counts
    assert {"ft", "scrub", "ga", "diverged"} <= set(rows)
    (second,) = (row for name, row in rows.items() if name.startswith(SECOND_RETRAINED))
    assert "the floor" in second[0]
    assert "±" in second[2]
    assert len(rows["ft"]) == 1 + len(COLUMNS)
    assert "failed, see below" in rows["diverged"][1]
    assert "Digits <made up>" in page.text
    assert "random & 10 %" in page.text
    assert {"tier-c", "tier-d", "alike", "lead", "floor-row"} <= set(page.classes)


def test_page_loads_nothing(html: str) -> None:
    assert "default-src 'none'" in html
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", html)
    assert "http://" not in html
    assert "https://" not in html
    assert "<script" not in html


def test_page_draws_three_plots_with_both_retrained_models(html: str) -> None:
    plots = benchmark_plots(small_summary(METHODS).sets[0])
    assert [plot.heading for plot in plots] == [
        "Privacy against utility",
        "Gap to retraining against cost",
        "Privacy against cost",
    ]
    for plot in plots:
        for name in (RETRAINED, SECOND_RETRAINED, "ft", "scrub", "ga", "original"):
            assert f">{name}</text>" in plot.svg
    assert html.count("<svg") == 3


def test_the_line_of_a_pool_is_the_second_retrained_one_and_says_so() -> None:
    made_up = small_summary(METHODS)
    own, pools = benchmark_plots(made_up.sets[0])[0], benchmark_plots(with_pools(made_up))[0]
    assert "The dotted line is the retrained model: the aim is the line" in own.remark
    assert "The dotted line is the floor, the second retrained model: the aim is the line" in pools.remark
    for plot in (own, pools):
        assert plot.svg.count("stroke-dasharray") == 1, "the line is drawn"


def test_without_costs_there_is_one_plot() -> None:
    part = small_summary(METHODS).sets[0]
    methods = tuple(
        replace(each, cells={metric: cell for metric, cell in each.cells.items() if metric != "cost.passes"})
        for each in part.methods
    )
    assert [plot.heading for plot in benchmark_plots(replace(part, methods=methods))] == [
        "Privacy against utility"
    ]


def test_retraining_is_at_distance_0_of_itself() -> None:
    points = {
        each.name: each for each in plot_points(small_summary(METHODS).sets[0], "cost.passes", "gap.acc.test")
    }
    assert (points[RETRAINED].x, points[RETRAINED].y) == (100.0, 0.0)
    assert points[SECOND_RETRAINED].y > 1
    assert "diverged" not in points


def test_pareto_front_leaves_out_what_is_beaten_and_references() -> None:
    def point(name: str, x: float, y: float, competes: bool = True) -> Point:
        return Point(name, "after", x, y, 0.0, 0.0, competes)

    points = [point("a", 1, 9), point("b", 2, 5), point("c", 3, 6), point("d", 4, 1), point("e", 0, 0, False)]
    assert [each.name for each in pareto_front(points)] == ["a", "b", "d"]


def test_few_seeds_are_said_aloud() -> None:
    page = Reader(render_benchmark(small_summary(METHODS, seeds=2), COLUMNS))
    assert "Nothing is ranked" in page.text
    assert "lead" not in page.classes


def test_names_of_crowded_points_cover_neither_each_other_nor_leave_the_plot() -> None:
    figure = Figure(figsize=(5.4, 4.3))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlim=(0, 10), ylim=(0, 10))
    crowd = [
        (9.0 + 0.05 * (place % 3), 5.0 + 0.1 * (place // 3), f"method_{place}", "black") for place in range(9)
    ]
    place_labels(figure, axes, crowd)
    figure.draw_without_rendering()
    names = [Text.get_window_extent(text) for text in axes.texts]  # without the leading lines
    assert len(names) == len(crowd)
    frame = axes.get_window_extent()
    for first, second in combinations(names, 2):
        assert (
            min(first.x1, second.x1) - max(first.x0, second.x0) < 1
            or min(first.y1, second.y1) - max(first.y0, second.y0) < 1
        )
    assert all(frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 for box in names)
