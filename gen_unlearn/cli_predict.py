"""The verb that classifies images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gen_unlearn.cli_base import (
    DryRunOption,
    JsonOption,
    RunArgument,
    SetOption,
    app,
    in_one_process,
    open_run,
    reports_errors,
    show,
)


@app.command()
@reports_errors
@in_one_process
def predict(
    run: RunArgument,
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Image file, or folder of them.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for predictions.csv and votes.png.")
    ] = None,
    voters: Annotated[
        int | None,
        typer.Option("--voters", min=1, help="Exemplars to name for each image; 8 by default."),
    ] = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Classify images, and show which exemplars voted."""
    from gen_unlearn.commands import predict as prediction
    from gen_unlearn.words import counted

    folder = open_run(run)
    _ = folder.classifier_config  # A generator is refused before its settings are.
    folder = folder.with_overrides(overrides or [])
    files = prediction.images_below(images)
    if out is not None:
        prediction.require_apart(out, folder, images)
    if dry_run:
        where = "" if out is None else f", and write predictions.csv and pictures to {out}"
        facts: dict[str, object] = {"images": len(files), "out": None if out is None else str(out)}
        show(f"would classify {counted(len(files), 'image')}{where}", facts, as_json)
        return
    found = prediction.predict(folder, files, 8 if voters is None else voters)
    written = [] if out is None else prediction.write_predictions(folder, files, found, out)
    notes = prediction.notes_of(folder, found, out is not None, voters)
    text = [prediction.table(found), *(f"wrote   {path}" for path in written)]
    facts = {"predictions": [one.facts() for one in found], "files": [str(path) for path in written]}
    if folder.is_ensemble:
        facts["label_only"] = any(one.label_only for one in found)
    show("\n".join([*text, *(f"note    {note}" for note in notes)]), facts | {"notes": notes}, as_json)
