"""The folder that a benchmark writes: its recipe first, its rows, summary, table and page at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from accelerate import PartialState

from gen_unlearn.atomic import write_text
from gen_unlearn.benchmark.page import SheetsBySet, render_benchmark
from gen_unlearn.benchmark.rows import Row, write_lines
from gen_unlearn.benchmark.summary import BenchmarkSummary
from gen_unlearn.benchmark.table import markdown_benchmark


class WrittenRecipe(Protocol):
    """A recipe that can be written down."""

    def to_yaml(self) -> str:
        """Return the recipe with every value spelled out."""


def begin_folder(recipe: WrittenRecipe, out: Path, process: PartialState) -> None:
    """Make the folder, and write the recipe to it.

    Raises:
        ValueError: `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"expected a folder to write, got the file {out}; name another one")
    out.mkdir(parents=True, exist_ok=True)
    if process.is_main_process:
        write_text(out / "recipe.yaml", recipe.to_yaml())


def write_results(
    out: Path,
    rows: Sequence[Row],
    summary: BenchmarkSummary,
    table: Sequence[str],
    sheets: SheetsBySet | None = None,
) -> None:
    """Write ``rows.jsonl``, ``summary.json``, ``table.md`` and ``report.html``.

    Args:
        out: the folder.
        rows: of all models.
        summary: of the rows.
        table: ids of the metrics that tables show.
        sheets: forget set -> row name -> a picture of samples; `None` for none.
    """
    write_lines(out / "rows.jsonl", rows)
    write_text(out / "summary.json", summary.as_json())
    write_text(out / "table.md", markdown_benchmark(summary, table))
    write_text(out / "report.html", render_benchmark(summary, table, sheets=sheets))


def failures(summary: BenchmarkSummary) -> list[str]:
    """Return which rows failed, and why."""
    return [
        f"{one.forget_set}, {method.name}, {reason}"
        for one in summary.sets
        for method in one.methods
        for reason in method.failed
    ]


def rows_by_set(rows: Sequence[Row]) -> Mapping[str, dict[str, list[Row]]]:
    """Return forget set -> row name -> its rows, in their order."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(row.forget_set, {}).setdefault(row.name, []).append(row)
    return found
