"""What all verbs of the command line share: options, one-line errors, and how results are printed."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

if TYPE_CHECKING:
    from gen_unlearn.runs import RunFolder

P = ParamSpec("P")


class _OneLineErrors(TyperGroup):
    """Report a wrong option, argument or verb like every other mistake: in one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TyperException as error:
            typer.echo(f"error: {' '.join(error.format_message().split())}", err=True)
            raise typer.Exit(2) from None


_LOCK_ERRORS = ("release unlocked lock", "cannot release un-acquired lock")

app = typer.Typer(
    cls=_OneLineErrors,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Delete training images from image generators and classifiers, and show what it did.",
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a recipe value. Repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
WaitOption = Annotated[float, typer.Option("--wait", help="Seconds to wait for another change of the run.")]


def reports_errors(verb: Callable[P, None]) -> Callable[P, None]:
    """Turn a caller's mistake into one line on standard error and exit code 2, and Ctrl-C into 130."""

    @functools.wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
        except (ValueError, OSError, RecursionError) as error:
            typer.echo(f"{_who()}error: {_one_line(str(error))}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as error:
            typer.echo(": ".join(filter(None, ["interrupted", _one_line(str(error))])), err=True)
            raise typer.Exit(130) from None
        except RuntimeError as error:
            if not is_ctrl_c_in_a_lock(error):
                raise
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None

    return wrapped


def is_ctrl_c_in_a_lock(error: BaseException) -> bool:
    """Tell whether an error is what `threading` makes of a Ctrl-C that comes while it holds a lock."""
    return isinstance(error.__context__, KeyboardInterrupt) and str(error) in _LOCK_ERRORS


def in_one_process(verb: Callable[P, None]) -> Callable[P, None]:
    """Refuse what a launcher starts in several processes of a verb that is no work to share."""

    @functools.wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        processes = os.environ.get("WORLD_SIZE", "1")
        if processes != "1":
            raise ValueError(
                f"expected one process for {verb.__name__}, got {processes}; start it without the launcher"
            )
        verb(*args, **kwargs)

    return wrapped


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """Say how to continue when training stops on Ctrl-C, and exit with 130."""
    from gen_unlearn.training.checkpoint import TrainingInterruptedError

    try:
        yield
    except TrainingInterruptedError as error:
        if _speaks():
            typer.echo(f"{error}; continue with: {command}", err=True)
        raise typer.Exit(130) from None


def open_run(path: Path) -> RunFolder:
    """Open a trained run; say so if a change that a crash cut short was finished or undone."""
    from gen_unlearn.runs import RunFolder

    run = RunFolder.open(path)
    if run.notice is not None:
        note(run.notice)
    return run


def show(text: str, facts: dict[str, Any], as_json: bool) -> None:
    """Print for people, or one JSON object; of several processes with the same work the first one does."""
    if _speaks():
        sys.stdout.write((json.dumps(facts) if as_json else _printable(text)) + "\n")
        sys.stdout.flush()


def note(text: str) -> None:
    """Say something beside the result, in one line on standard error; see `show` for several processes."""
    if _speaks():
        typer.echo(f"note: {_one_line(text)}", err=True)


def _speaks() -> bool:
    """Tell whether this process is the only one or the first of several; it asks without heavy imports."""
    return os.environ.get("RANK", "0") == "0"


def _who() -> str:
    """Return how a process other than the first begins to say that it failed, perhaps it alone."""
    return "" if _speaks() else f"process {os.environ['RANK']}: "


def _one_line(text: str) -> str:
    return " ".join(_printable(text).split())


def _printable(text: str) -> str:
    """Escape what no terminal can show: bytes of file names that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
