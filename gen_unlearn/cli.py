"""The ``gen-unlearn`` command: parse, call the library, print."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from gen_unlearn import cli_benchmark, cli_changes, cli_evaluate, cli_predict, cli_unlearn
from gen_unlearn.cli_base import (
    DryRunOption,
    JsonOption,
    RunArgument,
    SetOption,
    app,
    in_one_process,
    note,
    open_run,
    reports_errors,
    resumable,
    show,
)

__all__ = ["app", "cli_benchmark", "cli_changes", "cli_evaluate", "cli_predict", "cli_unlearn", "main"]


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Equal bits on CUDA; read when it starts.
    app()


@app.command()
@reports_errors
@in_one_process
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("gen-unlearn-demo"),
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the whole job on handwritten digits."""
    from gen_unlearn.commands.stages import Stages

    stages = Stages()
    with stages.timed("imports"):
        from gen_unlearn.commands.demo import demo_config, run_demo

    config = demo_config(overrides or [])
    if dry_run:
        show(
            f"would run the demo into {out} with this recipe:\n{config.to_yaml()}", {"out": str(out)}, as_json
        )
        return
    settings = [word for override in overrides or [] for word in ("--set", override)]
    with resumable(shlex.join(["gen-unlearn", "demo", "--out", str(out), *settings])):
        summary = run_demo(config, out, stages)
    show(f"report   {out / 'report.html'}\nsummary  {out / 'summary.json'}", summary, as_json)


@app.command()
@reports_errors
def train(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Interrupted run to continue.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Recipe.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the new run.")] = None,
    without: Annotated[
        list[Path] | None,
        typer.Option(
            "--without", help="Run, or receipt in it, whose deleted images are left out. Repeatable."
        ),
    ] = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a generator or a classifier, or an oracle of it."""
    from gen_unlearn.commands.train import deleted_from, describe, is_trained, summary
    from gen_unlearn.commands.train import train as train_run
    from gen_unlearn.config import load_recipe
    from gen_unlearn.runs import RunFolder
    from gen_unlearn.words import counted

    if (run is None) == (config is None or out is None) or (run is not None and (config or out or overrides)):
        raise ValueError("expected either --config RECIPE --out DIR, or the RUN to continue and nothing else")
    folder = run or out
    recipe_path = config if run is None else run / "recipe.yaml"
    assert folder is not None
    assert recipe_path is not None
    recipe = load_recipe(recipe_path, overrides or [])
    forget, origin = deleted_from(without) if without else (RunFolder(folder).without(), None)
    if dry_run:
        show(
            f"would train into {folder}, without {counted(len(forget or ()), 'image')}, this recipe:\n"
            f"{recipe.to_yaml()}",
            {"out": str(folder), "recipe": recipe.digest},
            as_json,
        )
        return
    before = is_trained(folder)
    with resumable(shlex.join(["gen-unlearn", "train", str(folder)])):
        facts = describe(train_run(recipe, folder, forget, origin))
    show(summary(facts, before), facts | {"trained_already": before}, as_json)


@app.command()
@reports_errors
def sample(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder for the PNG files; must be new or empty.")],
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Name or index of a class; all by default. Repeatable."),
    ] = None,
    count: Annotated[int, typer.Option(help="Images per class.")] = 10,
    null: Annotated[
        bool, typer.Option("--null", help="Sample from the null token: without exemplars, or a class.")
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option(
            "--like", metavar="IMAGE", help="Of an adapter ensemble: with the adapters nearest to this image."
        ),
    ] = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Generate images as PNG files."""
    from gen_unlearn.commands.evaluate_adapters import waiting_notes
    from gen_unlearn.commands.sample import SampleRequest
    from gen_unlearn.commands.sample import sample as sample_run

    folder = open_run(run).with_overrides(overrides or [])
    request = SampleRequest(tuple(classes or ()), count, null, like)
    if dry_run:
        labels = request.resolve(folder.manifest.class_names, folder.load_pipeline())
        show(f"would write {len(labels) * count} images to {out}", {"images": len(labels) * count}, as_json)
        return
    written = sample_run(folder, request, out)
    for text in waiting_notes(folder):
        note(text)
    show(f"wrote {written} images and sheet.png to {out}", {"images": written, "out": str(out)}, as_json)


@app.command()
@reports_errors
@in_one_process
def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option("--out", help="HTML file; RUN/report.html by default.")] = None,
    show_deleted: Annotated[
        bool, typer.Option("--show-deleted", help="Show deleted images, if the source has them.")
    ] = False,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write what was evaluated as one HTML page."""
    from gen_unlearn.commands.report import write_report

    folder = open_run(run).with_overrides(overrides or [])
    path = out or folder.report_path
    if not dry_run:
        write_report(folder, path, show_deleted)
    show(f"{'would write' if dry_run else 'report'}  {path}", {"report": str(path)}, as_json)


@app.command()
@reports_errors
def info(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Run folder.")] = None,
    planning: Annotated[
        bool, typer.Option("--plan", help="Say what an adapter ensemble costs: that of RUN, or a new one.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="A=B", help="Change a number of the plan, or a recipe value of RUN. Repeatable."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Describe a run, or the software; or plan an adapter ensemble."""
    if planning:
        from gen_unlearn.commands.plan import plan_ensemble

        planned = plan_ensemble(run, overrides or [])
        show(
            "\n".join(f"{name:<18} {value}" for name, value in planned.rows().items()),
            planned.as_dict(),
            as_json,
        )
        return
    if overrides and run is None:
        raise ValueError("expected --set together with --plan or a RUN, got neither")
    if run is None:
        from gen_unlearn.commands.software import describe_software

        facts = describe_software()
    else:
        from gen_unlearn.commands.info import describe_run

        facts = describe_run(run, overrides or [])
    show("\n".join(f"{name:<18} {value}" for name, value in facts.items()), facts, as_json)


if __name__ == "__main__":
    main()
