from __future__ import annotations

import math
from dataclasses import replace

import pytest
from benchmark_summaries import COLUMNS, METHODS, noisy, small_summary, with_pools

from gen_unlearn.benchmark.catalogue import CATALOGUE, TIERS, metric_definition
from gen_unlearn.benchmark.summary import (
    RETRAINED,
    SECOND_RETRAINED,
    BenchmarkSummary,
    MethodSummary,
    SetSummary,
    summarise_cell,
)
from gen_unlearn.benchmark.table import (
    CellView,
    SetTable,
    format_number,
    markdown_benchmark,
    markdown_table,
    order_text,
    set_table,
    together,
)


def table_of(summary: BenchmarkSummary, columns: tuple[str, ...] = COLUMNS) -> SetTable:
    return set_table(summary.sets[0], columns, summary.regime)


def view(table: SetTable, method: str, metric: str) -> CellView:
    (row,) = (row for row in table.rows if row.method.name == method)
    cell = row.cells[table.columns.index(metric)]
    assert cell is not None
    return cell


def changed(summary: BenchmarkSummary, method: MethodSummary) -> SetSummary:
    part = summary.sets[0]
    return replace(part, methods=tuple(method if each.name == method.name else each for each in part.methods))


def test_catalogue_is_whole_and_consistent() -> None:
    named = [
        "acc.forget",
        "acc.retain",
        "acc.heldout",
        "acc.test",
        "acc.forget_class_test",
        "optml.ua",
        "gap.acc.forget",
        "gap.acc.retain",
        "gap.acc.heldout",
        "gap.acc.test",
        "avg_gap.optml",
        "tow",
        "tow_mia",
        "aus",
        "nomus",
        "mia_pop.loss.auc",
        "mia_pop.modified_entropy.tpr@1%",
        "optml.mia_efficacy.confidence",
        "rmia.ratio.auc",
        "ulira.loo.auc",
        "ulira.loo.tpr@1%",
        "klom.hist20.mean.forget",
        "klom.hist20.p95.heldout",
        "klom.gauss.mean.retain",
        "eps_score.single.n512",
        "pg_h.forget",
        "pg_s.test",
        "js.forget",
        "actdist.test",
        "zrf",
        "energy_pg.01.forget",
        "energy_pg.js.test",
        "probe.linear",
        "confusion.ic",
        "relearn.steps",
        "relearn.acc.k10",
        "cost.passes",
        "cost.seconds",
    ]
    for metric in named:
        assert metric_definition(metric).version >= 1
    for metric, definition in CATALOGUE.items():
        assert definition.id == metric
        assert definition.tier in TIERS
        assert definition.definition.endswith(".")
    assert metric_definition("gap.acc.test").direction == "lower"
    assert metric_definition("acc.test").direction == "retrain"
    with pytest.raises(ValueError, match="'mia' is no metric"):
        metric_definition("mia")


def test_summarises_pairs_by_seed() -> None:
    cell = summarise_cell({2: [3.0, 5.0], 1: [2.0, 2.0], 7: [9.0, 9.0]}, {1: 1.0, 2: 3.0, 7: 8.0, 9: 50.0})
    assert (cell.seeds, cell.values) == ((1, 2, 7), (2.0, 4.0, 9.0))
    assert (cell.value, cell.floor) == (5.0, 4.0)
    assert cell.excess_half_width == pytest.approx(0.0, abs=1e-12)  # every seed exceeds its floor by 1
    assert cell.half_width > 5
    assert not cell.indistinguishable("distance")
    assert cell.indistinguishable("score"), "above the floor of a score"
    with pytest.raises(ValueError, match=r"no\w* for \[2\]"):
        summarise_cell({1: [1.0], 2: [1.0]}, {1: 1.0})
    with pytest.raises(ValueError, match="finite"):
        summarise_cell({1: [math.nan]}, None)


def test_verdicts_of_a_distance_a_score_and_a_level() -> None:
    seeds = range(5)
    floors = dict.fromkeys(seeds, 2.0)

    def verdicts(offset: float, spread: float) -> tuple[bool, bool, bool]:
        values = {seed: [2.0 + offset + spread * (seed - 2)] for seed in seeds}
        cell = summarise_cell(values, floors)
        return (
            cell.indistinguishable("distance"),
            cell.indistinguishable("score"),
            cell.indistinguishable("level"),
        )

    assert verdicts(1.0, 0.1) == (False, True, False)
    assert verdicts(-1.0, 0.1) == (True, False, False)
    assert verdicts(1.0, 2.0) == (True, True, True)
    assert verdicts(0.0, 0.0) == (True, True, True)
    assert not summarise_cell({0: [2.0], 1: [2.0]}, floors).indistinguishable("distance"), (
        "two seeds say nothing"
    )
    assert not summarise_cell({seed: [1.0] for seed in seeds}, None).indistinguishable("distance")


def test_marks_the_best_and_what_is_like_retraining() -> None:
    table = table_of(small_summary(METHODS))
    assert view(table, "scrub", "gap.acc.test").marked.endswith("≈ ★")
    assert (view(table, "ga", "gap.acc.test").alike, view(table, "ga", "gap.acc.test").place) == (False, "")
    assert view(table, SECOND_RETRAINED, "gap.acc.test").place == "", "references do not compete"
    assert not view(table, SECOND_RETRAINED, "gap.acc.test").alike
    assert view(table, RETRAINED, "gap.acc.test").text == "0"
    assert "5 training seeds; floor 1." in view(table, "ft", "gap.acc.test").note
    assert "paired difference 2." in view(table, "ft", "gap.acc.test").note
    (order,) = (order for order in table.orders if order.metric.id == "gap.acc.forget")
    assert order.ranking.order == ("scrub", "ft", "ga")
    assert order.unranked == ("diverged",)


def test_equal_methods_are_a_tie() -> None:
    alike = {"one": METHODS["ft"], "two": METHODS["ft"], "worse": METHODS["ga"]}
    table = table_of(small_summary(alike), ("gap.acc.test",))
    assert {view(table, name, "gap.acc.test").place for name in ("one", "two")} == {"tie for best"}
    assert view(table, "worse", "gap.acc.test").place == ""
    (order,) = table.orders
    assert "(a)" in order_text(order)
    assert "worse (b)" in order_text(order)
    only_ties = table_of(small_summary({"one": METHODS["ft"], "two": METHODS["ft"]}), ("gap.acc.test",))
    assert view(only_ties, "one", "gap.acc.test").place == "", "where all tie there is no best"


def test_two_seeds_rank_nothing() -> None:
    table = table_of(small_summary(METHODS, seeds=2))
    assert all(order.ranking is None for order in table.orders)
    assert "no ranking, 2 training seeds; it takes 3" in order_text(table.orders[0])
    assert all(cell is None or cell.marked == cell.text for row in table.rows for cell in row.cells)


def test_a_method_with_a_failed_run_is_not_ranked() -> None:
    summary = small_summary(METHODS)
    scrub = summary.sets[0].method("scrub")
    table = set_table(changed(summary, replace(scrub, failed=("seed 3: no step",))), COLUMNS, "benchmark")
    (order,) = (order for order in table.orders if order.metric.id == "gap.acc.forget")
    assert "scrub" in order.unranked
    assert "scrub" not in order.ranking.order
    assert "- scrub: failed: seed 3: no step" in markdown_table(table)


def test_a_reason_is_told_once_for_all_its_seeds() -> None:
    failed = ("seed 0: too hot", "seed 1: no: really", "seed 2: too hot")
    assert together(failed) == ("seeds 0, 2: too hot", "seed 1: no: really")


def test_pools_have_one_value_that_is_not_ranked_and_compared_with_the_second_retrained_pool() -> None:
    columns = ("ulira.loo.auc", "klom.gauss.mean.forget")
    part = with_pools(small_summary(METHODS))
    table = set_table(part, columns, "benchmark")
    note = view(table, "ft", "ulira.loo.auc").note
    assert note.startswith("5 training seeds; second retrained 0.5, paired difference")
    assert view(table, "ft", "klom.gauss.mean.forget").note.startswith("5 training seeds; floor 0.5")
    (order,) = table.orders
    assert "pools of models have one value" in order_text(order)
    assert order.unranked == ("diverged",)


def test_a_distance_without_a_floor_is_an_error() -> None:
    summary = small_summary(METHODS)
    ft = summary.sets[0].method("ft")
    bare = summarise_cell(noisy("ft", "gap.acc.test", 4.0, 5, 0.1), None)
    part = changed(summary, replace(ft, cells={**ft.cells, "gap.acc.test": bare}))
    with pytest.raises(ValueError, match=r"expected a floor for gap\.acc\.test of ft on 'random"):
        set_table(part, COLUMNS, "benchmark")
    set_table(part, ("acc.forget", "cost.passes"), "benchmark")


def test_references_have_to_be_there() -> None:
    part = small_summary(METHODS).sets[0]
    rest = replace(part, methods=tuple(each for each in part.methods if each.name != SECOND_RETRAINED))
    with pytest.raises(ValueError, match="none of second retrained"):
        set_table(rest, COLUMNS, "benchmark")
    set_table(rest, COLUMNS, "deployment")


def test_numbers_go_to_the_second_digit_of_their_half_width() -> None:
    texts = [
        format_number(*pair) for pair in ((3.2812, 0.414), (97.123, 12.6), (0.12345, 0.0996), (5.0, 0.0))
    ]
    assert texts == ["3.28 ± 0.41", "97 ± 13", "0.12 ± 0.10", "5 ± 0"]
    assert format_number(2.34567, None) == "2.346 ± ?"
    assert format_number(0.1, 1e-17) == "0.1 ± 0"


def test_markdown_has_a_row_for_each_method_and_all_its_marks() -> None:
    text = markdown_benchmark(small_summary(METHODS), COLUMNS)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 + len(METHODS) + 1
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 2}
    assert "`tow` [D]" in lines[0]
    assert any(line.startswith("| *second retrained* (floor) |") for line in lines)
    assert "| diverged | failed |" in lines[-1]
    assert "Regime: benchmark. Seeds: 5 train, 1 unlearn." in text
    assert "indistinguishable from retraining (not: better than it)" in text


def test_a_summary_survives_json() -> None:
    summary = small_summary(METHODS, designs=("ga",))
    assert BenchmarkSummary.from_json(summary.as_json()) == summary
    content = summary.as_dict()
    with pytest.raises(ValueError, match="as this version writes it"):
        BenchmarkSummary.from_dict({**content, "further": 1})
    content.pop("sets")
    with pytest.raises(ValueError, match="as this version writes it"):
        BenchmarkSummary.from_dict(content)


def test_designs_have_targets_of_their_own_and_are_not_ranked() -> None:
    together, apart = (
        set_table(small_summary(METHODS, designs=designs).sets[0], ("tow",), "benchmark")
        for designs in ((), ("ga",))
    )
    orders = [table.orders[0] for table in (together, apart)]
    ranked = [set(order.ranking.order) for order in orders if order.ranking is not None]
    assert len(ranked) == 2
    assert ranked[0] - ranked[1] == {"ga"}
