"""The one page of a benchmark: a table and plots for each forget set, failed runs, and definitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from gen_unlearn.benchmark.catalogue import TIERS, metric_definition
from gen_unlearn.benchmark.plots import KIND_VARIABLES, RETRAINED_VARIABLE, BenchmarkPlot, benchmark_plots
from gen_unlearn.benchmark.statistics import LEAST_SEEDS_TO_RANK, Test
from gen_unlearn.benchmark.summary import (
    ORIGINAL,
    RETRAINED,
    SECOND_RETRAINED,
    BenchmarkSummary,
    MethodSummary,
    SetSummary,
)
from gen_unlearn.benchmark.table import SetTable, set_table, tie_letters
from gen_unlearn.report.images import Picture

_REGIMES = {
    "benchmark": "benchmark: hyper-parameters were chosen with retrained models of pilot seeds",
    "deployment": "deployment: nothing was retrained to choose hyper-parameters",
}

_CAPTIONS = {
    ORIGINAL: "does nothing",
    RETRAINED: "the target",
    SECOND_RETRAINED: "the floor",
}
"""Reference row -> what it stands for."""

_TARGETS = {"retrain": "as retrained", "lower": "lower", "higher": "higher"}
"""Direction of a metric -> how the head of its column says so."""

_KINDS = {
    "method": "gradient-based method",
    "design": "model designed to forget",
    "reference": "original model",
}


@dataclass(frozen=True)
class SetView:
    """One forget set as the page shows it."""

    summary: SetSummary
    table: SetTable
    plots: list[BenchmarkPlot]
    sheets: Mapping[str, Picture]


SheetsBySet = Mapping[str, Mapping[str, Picture]]
"""Forget set -> row name -> a picture of samples."""


def render_benchmark(
    summary: BenchmarkSummary,
    metrics: Sequence[str],
    test: Test = "t",
    sheets: SheetsBySet | None = None,
) -> str:
    """Render the page of a benchmark as one HTML text that loads nothing from anywhere.

    Args:
        summary: what the benchmark found.
        metrics: ids of the columns, from left to right.
        test: the test behind the rankings.
        sheets: samples of generators; `None` for none.

    Raises:
        ValueError: as `gen_unlearn.benchmark.table.set_table` does.
    """
    views = [
        SetView(
            each,
            set_table(each, metrics, summary.regime, test),
            benchmark_plots(each),
            (sheets or {}).get(each.forget_set, {}),
        )
        for each in summary.sets
    ]
    return (
        _environment()
        .get_template("benchmark.html.jinja")
        .render(
            summary=summary,
            views=views,
            facts=_facts(summary),
            tiers=TIERS,
            captions=_CAPTIONS,
            targets=_TARGETS,
            legend=_legend(summary),
            definitions=[(metric, metric_definition(metric)) for metric in metrics],
            few_seeds=summary.seeds.get("train", 0) < LEAST_SEEDS_TO_RANK,
            least_seeds=LEAST_SEEDS_TO_RANK,
            test={"t": "paired t tests", "wilcoxon": "Wilcoxon signed rank tests"}[test],
            tie_letters=tie_letters,
            second=SECOND_RETRAINED,
        )
    )


def _environment() -> Environment:
    """Return the templates of the benchmark, which share the style sheet of the reports."""
    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader("gen_unlearn", "benchmark"), PackageLoader("gen_unlearn", "report")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["swatch"] = _swatch
    return environment


def _facts(summary: BenchmarkSummary) -> list[tuple[str, str]]:
    """Return the headline facts as pairs of name and text."""
    methods = {each.name for part in summary.sets for each in part.methods if each.kind != "reference"}
    failed = sum(len(each.failed) for part in summary.sets for each in part.methods)
    return [
        ("Methods", str(len(methods))),
        ("Forget sets", str(len(summary.sets))),
        ("Seeds", ", ".join(f"{count} {name}" for name, count in summary.seeds.items())),
        ("Failed runs", str(failed)),
        ("Regime", _REGIMES[summary.regime].partition(":")[0]),
    ]


def _legend(summary: BenchmarkSummary) -> list[tuple[str, str]]:
    """Return the colours of the plots, as pairs of variable and words, for the kinds that take part."""
    kinds = dict.fromkeys(method.kind for part in summary.sets for method in part.methods)
    return [
        *((KIND_VARIABLES[kind], words) for kind, words in _KINDS.items() if kind in kinds),
        (RETRAINED_VARIABLE, "retrained model; hollow: the second one"),
    ]


def _swatch(method: MethodSummary) -> str:
    """Return the variable of the style sheet that colours a row."""
    return RETRAINED_VARIABLE if method.name in (RETRAINED, SECOND_RETRAINED) else KIND_VARIABLES[method.kind]


def _breakable(metric: str) -> Markup:
    """Let an id break behind its dots."""
    return Markup(str(escape(metric)).replace(".", ".<wbr>"))
