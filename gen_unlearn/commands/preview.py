"""Show what a request would delete, as a table and as contact sheets, and delete nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from gen_unlearn.atomic import write_text
from gen_unlearn.commands.search import Selection
from gen_unlearn.report.images import save_grid
from gen_unlearn.repro import ids_to_hex
from gen_unlearn.runs import RunFolder

COLUMNS = 20
_IMAGES_PER_SHEET = 1000
_HEADER = ("id", "class", "found as", "similarity", "sheet", "row", "column")


def write_preview(run: RunFolder, selection: Selection, out: Path) -> list[Path]:
    """Write ``table.csv``, which ``--list`` takes, and the contact sheets of a selection.

    Returns:
        The files.

    Raises:
        ValueError: the folder lies in the run, where pictures of deleted images must not stay, or is a file.
    """
    if out.resolve().is_relative_to(run.path.resolve()):
        raise ValueError(
            f"expected a folder outside of the run, got {out}; what it shows should not stay there"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"expected a folder, got the file {out}; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_HEADER, *table(selection)])
    write_text(out / "table.csv", text.getvalue())
    files = [out / "table.csv"]
    pixels = selection.rows.pixels
    for number, start in enumerate(range(0, len(pixels), _IMAGES_PER_SHEET), start=1):
        sheet = out / ("contact_sheet.png" if number == 1 else f"contact_sheet_{number}.png")
        save_grid(sheet, pixels[start : start + _IMAGES_PER_SHEET], COLUMNS)
        files.append(sheet)
    return files


def table(selection: Selection) -> Iterator[tuple[str, ...]]:
    """Yield a row for every image: id, class, why, similarity, and its place on the contact sheets."""
    rows = zip(ids_to_hex(selection.rows.ids), selection.rows.labels.tolist(), selection.found, strict=True)
    for number, (name, label, found) in enumerate(rows):
        sheet, place = divmod(number, _IMAGES_PER_SHEET)
        row, column = divmod(place, COLUMNS)
        similarity = f"{found.similarity:.3f}"
        yield (
            name,
            selection.class_names[label],
            found.how,
            similarity,
            str(sheet + 1),
            str(row + 1),
            str(column + 1),
        )


def summary(selection: Selection, shown: int = 20) -> str:
    """Return the table for a terminal: the first rows, and how many there are of each class."""
    rows = list(table(selection))
    lines = [
        f"  {name}  {label:<12} {similarity}  {how}" for name, label, how, similarity, *_ in rows[:shown]
    ]
    if len(rows) > shown:
        lines.append(f"  ... and {len(rows) - shown} more, see table.csv")
    per_class = ", ".join(f"{name}: {count}" for name, count in selection.count_by_class().items())
    return "\n".join([f"would delete {len(rows)} images ({per_class})", *lines, *selection.notes])
