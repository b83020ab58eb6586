"""The verb that compares unlearning methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gen_unlearn.cli_base import DryRunOption, JsonOption, SetOption, app, reports_errors, show


@app.command()
@reports_errors
def benchmark(
    config: Annotated[Path, typer.Option("--config", help="Recipe of the benchmark.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write, or to go on in.")],
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare unlearning methods with retraining, under one protocol."""
    from gen_unlearn.benchmark.by_task import load_any, plan_any, run_any
    from gen_unlearn.benchmark.results import failures
    from gen_unlearn.training.checkpoint import TrainingInterruptedError
    from gen_unlearn.words import counted

    recipe = load_any(config, overrides or [])
    if dry_run:
        plan = plan_any(recipe)
        parts = [counted(plan[part], part.removesuffix("s")) for part in ("models", "trials", "rows")]
        show(f"would train, search and measure {', '.join(parts)} into {out}", plan, as_json)
        return
    try:
        summary = run_any(recipe, out)
    except (KeyboardInterrupt, TrainingInterruptedError):
        raise KeyboardInterrupt(f"the same command goes on in {out}") from None
    failed = failures(summary)
    files = {name: str(out / name) for name in ("report.html", "table.md", "summary.json", "rows.jsonl")}
    lines = [f"{name:<13} {file}" for name, file in files.items()]
    lines += [f"failed: {reason}" for reason in failed]
    show("\n".join(lines), {**files, "failed": failed}, as_json)
    if failed:
        raise typer.Exit(1)
