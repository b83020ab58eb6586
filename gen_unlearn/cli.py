"""The ``gen-unlearn`` command: parse, call the library, print."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

P = ParamSpec("P")


class _OneLineErrors(TyperGroup):
    """Report a wrong option, argument or verb like every other mistake: in one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TyperException as error:
            typer.echo(f"error: {' '.join(error.format_message().split())}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_OneLineErrors,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Delete training images from image generators, and show what it did.",
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a recipe value. Repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]


def main() -> None:
    """Run the command line."""
    app()


def _reports_errors(verb: Callable[P, None]) -> Callable[P, None]:
    """Turn a caller's mistake into one line on standard error and exit code 2, and Ctrl-C into 130."""

    @functools.wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
        except (ValueError, OSError) as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None

    return wrapped


@app.command()
@_reports_errors
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("gen-unlearn-demo"),
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the whole job on handwritten digits."""
    from gen_unlearn.commands.demo import demo_config, run_demo

    config = demo_config(overrides or [])
    if dry_run:
        _print(
            f"would run the demo into {out} with this recipe:\n{config.to_yaml()}", {"out": str(out)}, as_json
        )
        return
    settings = [word for override in overrides or [] for word in ("--set", override)]
    with _resumable(shlex.join(["gen-unlearn", "demo", "--out", str(out), *settings])):
        summary = run_demo(config, out)
    _print(f"report   {out / 'report.html'}\nsummary  {out / 'summary.json'}", summary, as_json)


@app.command()
@_reports_errors
def train(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Interrupted run to continue.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Recipe.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the new run.")] = None,
    without: Annotated[
        list[Path] | None,
        typer.Option(
            "--without", help="Receipt, or run with receipts, whose images are left out. Repeatable."
        ),
    ] = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a generator, or its oracle."""
    from gen_unlearn.commands.train import describe, read_forget_sets
    from gen_unlearn.commands.train import train as train_run
    from gen_unlearn.config import load_config
    from gen_unlearn.runs import RunFolder

    if (run is None) == (config is None or out is None) or (run is not None and (config or out or overrides)):
        raise ValueError("expected either --config RECIPE --out DIR, or the RUN to continue and nothing else")
    folder = run or out
    recipe_path = config if run is None else run / "recipe.yaml"
    assert folder is not None
    assert recipe_path is not None
    recipe = load_config(recipe_path, overrides or [])
    forget = read_forget_sets(without or []) if without or run is None else RunFolder(run).without()
    if dry_run:
        _print(
            f"would train into {folder}, without {len(forget or ())} images, this recipe:\n"
            f"{recipe.to_yaml()}",
            {"out": str(folder), "recipe": recipe.digest},
            as_json,
        )
        return
    with _resumable(shlex.join(["gen-unlearn", "train", str(folder)])):
        facts = describe(train_run(recipe, folder, forget))
    _print(f"trained {folder} in {facts['seconds_train']:.0f} s, loss {facts['loss']:.4f}", facts, as_json)


@app.command()
@_reports_errors
def forget(
    run: RunArgument,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Name or index of a class. Repeatable.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--image", help="Image file, or folder of them. Repeatable.")
    ] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Sample id. Repeatable.")] = None,
    lists: Annotated[
        list[Path] | None, typer.Option("--list", help="Text or CSV file of ids or image files. Repeatable.")
    ] = None,
    fraction: Annotated[float | None, typer.Option(help="Random share of all images.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random share.")] = 0,
    reason: Annotated[str, typer.Option(help="Kept in the receipt.")] = "",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete images from a run, and write a receipt."""
    from dataclasses import asdict

    from gen_unlearn.commands.forget import ForgetRequest, preview
    from gen_unlearn.commands.forget import forget as forget_images
    from gen_unlearn.runs import RunFolder

    request = ForgetRequest(classes or (), images or (), ids or (), lists or (), fraction, seed, reason)
    folder = RunFolder.open(run)
    if dry_run:
        counts = preview(folder, request)
        table = "\n".join(f"  {name}: {count}" for name, count in counts.items())
        _print(f"would delete {sum(counts.values())} images:\n{table}", {"would_remove": counts}, as_json)
        return
    receipt, path = forget_images(folder, request)
    _print(f"{receipt}\nreceipt     {path}", asdict(receipt) | {"receipt": str(path)}, as_json)


@app.command()
@_reports_errors
def sample(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder for the PNG files; must be new or empty.")],
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Name or index of a class; all by default. Repeatable."),
    ] = None,
    count: Annotated[int, typer.Option(help="Images per class.")] = 10,
    null: Annotated[
        bool, typer.Option("--null", help="Sample from the null token, without exemplars.")
    ] = False,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Generate images as PNG files."""
    from gen_unlearn.commands.sample import SampleRequest
    from gen_unlearn.commands.sample import sample as sample_run
    from gen_unlearn.runs import RunFolder

    folder = RunFolder.open(run).with_overrides(overrides or [])
    request = SampleRequest(tuple(classes or ()), count, null)
    if dry_run:
        labels = request.resolve(folder)
        _print(f"would write {len(labels) * count} images to {out}", {"images": len(labels) * count}, as_json)
        return
    written = sample_run(folder, request, out)
    _print(f"wrote {written} images and sheet.png to {out}", {"images": written, "out": str(out)}, as_json)


@app.command()
@_reports_errors
def evaluate(
    run: RunArgument,
    oracle: Annotated[
        Path | None, typer.Option("--oracle", help="Run that was trained without what was deleted from RUN.")
    ] = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a run, and what a deletion changed."""
    from dataclasses import asdict

    from gen_unlearn.commands.evaluate import evaluate as evaluate_run
    from gen_unlearn.commands.evaluate import sample_plan
    from gen_unlearn.report.table import text_table
    from gen_unlearn.runs import RunFolder

    folder = RunFolder.open(run).with_overrides(overrides or [])
    oracle_folder = RunFolder.open(oracle) if oracle is not None else None
    if dry_run:
        plan = sample_plan(folder)
        text = f"would judge {run} by {plan.images_per_class} images per class and {plan.null_images} others"
        _print(text, {"images_per_class": plan.images_per_class, "null_images": plan.null_images}, as_json)
        return
    card = evaluate_run(folder, oracle_folder)
    _print(f"{text_table(card)}\nscorecard  {folder.scorecard_path}", asdict(card), as_json)


@app.command()
@_reports_errors
def report(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option("--out", help="HTML file; RUN/report.html by default.")] = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write what was evaluated as one HTML page."""
    from gen_unlearn.commands.report import write_report
    from gen_unlearn.runs import RunFolder

    folder = RunFolder.open(run).with_overrides(overrides or [])
    path = out or folder.report_path
    if not dry_run:
        write_report(folder, path)
    _print(f"{'would write' if dry_run else 'report'}  {path}", {"report": str(path)}, as_json)


@app.command()
@_reports_errors
def info(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Run folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Describe a run, or the software."""
    from gen_unlearn.commands.info import describe_run, describe_software

    facts = describe_software() if run is None else describe_run(run)
    _print("\n".join(f"{name:<18} {value}" for name, value in facts.items()), facts, as_json)


@contextmanager
def _resumable(command: str) -> Iterator[None]:
    """Say how to continue when training stops on Ctrl-C, and exit with 130."""
    from gen_unlearn.training.checkpoint import TrainingInterruptedError

    try:
        yield
    except TrainingInterruptedError as error:
        typer.echo(f"{error}; continue with: {command}", err=True)
        raise typer.Exit(130) from None


def _print(text: str, facts: dict[str, Any], as_json: bool) -> None:
    """Print for people, or one JSON object."""
    sys.stdout.write((json.dumps(facts) if as_json else text) + "\n")


if __name__ == "__main__":
    main()
