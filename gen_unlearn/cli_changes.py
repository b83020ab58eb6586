"""The verbs that change the exemplars of a run, and the one that verifies it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gen_unlearn.cli_base import (
    DryRunOption,
    JsonOption,
    RunArgument,
    WaitOption,
    app,
    in_one_process,
    open_run,
    reports_errors,
    show,
)

if TYPE_CHECKING:
    from gen_unlearn.commands.ensemble_changes import Rebuilding
    from gen_unlearn.commands.search import Selection
    from gen_unlearn.runs import RunFolder


@app.command()
@reports_errors
@in_one_process
def forget(
    run: RunArgument,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Name or index of a class. Repeatable.")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", help="Image file, a copy of it, or a folder of them. Repeatable."),
    ] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Sample id. Repeatable.")] = None,
    lists: Annotated[
        list[Path] | None, typer.Option("--list", help="Text or CSV file of ids or image files. Repeatable.")
    ] = None,
    like: Annotated[
        list[Path] | None, typer.Option("--like", help="Image file: everything like it. Repeatable.")
    ] = None,
    fraction: Annotated[float | None, typer.Option(help="Random share of all images.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random share.")] = 0,
    near_duplicates: Annotated[
        float | None,
        typer.Option(
            "--near-duplicates",
            metavar="SIMILARITY",
            help="Also what is so similar to a requested image, up to 1.",
        ),
    ] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out what is not there instead of refusing.")
    ] = False,
    keep_comparison: Annotated[
        bool,
        typer.Option(
            "--keep-comparison",
            help="Of a generator: keep samples and judge, to evaluate before against after.",
        ),
    ] = False,
    reason: Annotated[str, typer.Option(help="Kept in the receipt.")] = "",
    defer: Annotated[
        bool,
        typer.Option("--defer", help="Of an adapter ensemble: mask the adapters now, rebuild them later."),
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Delete nothing more; rebuild the adapters that wait for it.")
    ] = False,
    wait: WaitOption = 30.0,
    out: Annotated[
        Path, typer.Option("--out", help="With --dry-run: folder for table.csv and contact_sheet.png.")
    ] = Path("forget-preview"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Delete nothing; show what would go, and write it to --out.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete images from a run, and write a receipt."""
    from dataclasses import asdict

    from gen_unlearn.commands.ensemble_notes import deletion_notes
    from gen_unlearn.commands.ensemble_recipe import require_ensemble
    from gen_unlearn.commands.forget import find
    from gen_unlearn.commands.forget import forget as forget_images
    from gen_unlearn.commands.requests import ForgetRequest

    folder = open_run(run)
    if rebuild:
        chosen = [classes, images, ids, lists, like, fraction, near_duplicates, defer]
        _rebuild(folder, any(value not in (None, False) for value in chosen), wait, dry_run, as_json)
        return
    request = ForgetRequest(
        classes or (),
        images or (),
        ids or (),
        lists or (),
        like or (),
        fraction,
        seed,
        near_duplicates,
        skip_unknown,
        reason,
    )
    rebuilding: Rebuilding = "later" if defer else "now"
    if defer:
        require_ensemble(folder)
    selection = find(folder, request)
    if dry_run:
        _preview(folder, selection, rebuilding, out, as_json)
        return
    receipt, path = forget_images(folder, selection.forget_set, keep_comparison, wait, rebuilding)
    notes = [*selection.notes, *deletion_notes(folder, receipt, path.name)]
    text = "\n".join([str(receipt), f"receipt     {path}", *(f"note        {note}" for note in notes)])
    show(text, asdict(receipt) | {"receipt": str(path), "notes": notes}, as_json)


def _preview(run: RunFolder, selection: Selection, rebuilding: Rebuilding, out: Path, as_json: bool) -> None:
    """Show what a deletion would remove, and write it to a folder."""
    from gen_unlearn.commands.ensemble_notes import preview_words, touched_adapters
    from gen_unlearn.commands.preview import summary, write_preview

    files = [str(path) for path in write_preview(run, selection, out)]
    lines, facts = [summary(selection)], dict[str, object](would_remove=selection.count_by_class())
    if run.is_ensemble:
        touched = touched_adapters(run, selection.rows.ids)
        lines.append(preview_words(run, touched, rebuilding))
        facts["would_touch_adapters"] = len(touched)
    text = "\n".join([*lines, f"wrote   {', '.join(files)}"])
    show(text, facts | {"files": files, "notes": list(selection.notes)}, as_json)


def _rebuild(run: RunFolder, chosen: bool, wait: float, dry_run: bool, as_json: bool) -> None:
    """Rebuild the adapters that deletions have left waiting, or count them."""
    from gen_unlearn.commands.ensemble_changes import rebuild
    from gen_unlearn.commands.ensemble_notes import deletion_notes, named_receipts, rebuilt_words
    from gen_unlearn.commands.ensemble_recipe import require_ensemble
    from gen_unlearn.words import counted

    if chosen:
        raise ValueError(
            "expected --rebuild alone, which deletes nothing, got other options; leave it out to delete, and "
            "to rebuild at once"
        )
    require_ensemble(run)
    pending = [str(entry.receipt) for entry in run.ledger.incomplete] if dry_run else []
    if pending:
        waiting = len(run.adapter_folder().waiting)
        text = f"would rebuild {counted(waiting, 'adapter')}, and complete {named_receipts(pending)}"
        show(text, {"would_rebuild": waiting, "would_complete": pending}, as_json)
        return
    done = None if dry_run else rebuild(run, wait)
    if done is None:
        none = {"would_rebuild": 0, "would_complete": []} if dry_run else {"rebuilt": 0, "completes": []}
        show(f"no adapter of {run.path} waits to be rebuilt", none | {"receipt": None}, as_json)
        return
    notes = deletion_notes(run, done.receipt, "")
    lines = [rebuilt_words(done), f"receipt     {done.path}", *(f"note        {note}" for note in notes)]
    told = ("artefact", "level", "reason", "remaining", "digest_before", "digest_after", "left", "versions")
    facts = {name: getattr(done.receipt, name) for name in told}  # Its images were counted by the deletions.
    facts |= {"rebuilt": done.adapters, "completes": list(done.completes), "receipt": str(done.path)}
    show("\n".join(lines), facts | {"notes": notes}, as_json)


@app.command()
@reports_errors
@in_one_process
def add(
    run: RunArgument,
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Image file, or folder of them.")],
    class_name: Annotated[
        str | None, typer.Option("--class", help="Class of all; by default the sub-folders tell.")
    ] = None,
    wait: WaitOption = 30.0,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Add exemplars to a run, without training."""
    from gen_unlearn.commands.add import add as add_images
    from gen_unlearn.commands.add import read_new_images
    from gen_unlearn.commands.ensemble_notes import state_notes

    folder = open_run(run)
    data = read_new_images(folder, images, class_name)
    if dry_run:
        show(f"would add up to {len(data)} images to {run}", {"would_add": len(data)}, as_json)
        return
    added = add_images(folder, data, wait)
    known = len(data) - added
    text = f"added {added} images to {run}" + (f"; {known} were there already" if known else "")
    notes = state_notes(folder)
    text = "\n".join([text, *(f"note    {note}" for note in notes)])
    facts = {"added": added, "already_there": known} | ({"notes": notes} if folder.is_ensemble else {})
    show(text, facts, as_json)


@app.command()
@reports_errors
def verify(
    run: RunArgument,
    replay: Annotated[
        bool, typer.Option("--replay", help="Rebuild what the receipts promise, and compare every byte.")
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option("--sample", metavar="M", min=1, help="With --replay: only M random adapters."),
    ] = None,
    residue: Annotated[
        bool, typer.Option("--residue", help="Search every file of the run for what was deleted.")
    ] = False,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", help="With --residue: deleted images that the source has no more."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check ledger, receipts and state of a run; exit with 1 if anything is wrong."""
    if sample is not None and not replay:
        raise ValueError("expected --replay with --sample, which says how many adapters it rebuilds; add it")
    folder = open_run(run)

    from gen_unlearn.commands import verify as verification
    from gen_unlearn.commands.residue import audit
    from gen_unlearn.processes import process_state

    checks = verification.verify(folder)
    if replay and not verification.failures(checks):
        checks += verification.replay(folder, sample)
    lines = [str(check) for check in checks]
    facts: dict[str, object] = {
        "checks": [
            {"name": check.name, "passed": check.passed, "skipped": check.skipped, "said": check.said}
            for check in checks
        ]
    }
    passed = not verification.failures(checks)
    if residue:
        found = audit(folder, images or ())
        lines += found.lines()
        facts["residue"] = found.facts()
        passed = passed and found.clean
    show("\n".join(lines), facts | {"passed": passed}, as_json)
    process_state().wait_for_everyone()  # The first process prints; the end of another would end it.
    if not passed:
        raise typer.Exit(1)
