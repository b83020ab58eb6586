"""The residue audit: search every file below a folder for what was deleted."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gen_unlearn.progress import progress_bar
from gen_unlearn.residue.contents import search_contents
from gen_unlearn.residue.deleted import DeletedImages, Recognise
from gen_unlearn.residue.hits import Hit, Kind, Trace, Unsearched, inside, merged
from gen_unlearn.residue.wanted import Wanted

__all__ = ["DeletedImages", "Finding", "Recognise", "ResidueReport", "search_residue"]


@dataclass(frozen=True)
class Finding:
    """Residue in one file.

    Attributes:
        path: the file, relative to the folder.
        kind: "id", "file name", "pixels" (as numbers), "picture" (encoded) or "encoded tokens".
        detail: for people: which tensor, column, row or byte; it repeats no id and no name.
        count: how many times.
    """

    path: Path
    kind: Kind
    detail: str
    count: int


@dataclass(frozen=True)
class ResidueReport:
    """What a search found, and what it could not search.

    Attributes:
        files_searched: number of files.
        bytes_searched: their size on disk.
        findings: residue, in the order of the paths.
        not_searched: paths relative to the folder, each with the reason. Where a file could be opened but not
            understood, its bytes were searched all the same.
    """

    files_searched: int
    bytes_searched: int
    findings: tuple[Finding, ...]
    not_searched: tuple[tuple[Path, str], ...]

    @property
    def clean(self) -> bool:
        """Whether everything could be searched and nothing was found."""
        return not self.findings and not self.not_searched

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values that JSON can hold."""
        return {
            "clean": self.clean,
            "files_searched": self.files_searched,
            "bytes_searched": self.bytes_searched,
            "findings": [{**asdict(finding), "path": finding.path.as_posix()} for finding in self.findings],
            "not_searched": [
                {"path": path.as_posix(), "reason": reason} for path, reason in self.not_searched
            ],
        }


def search_residue(
    root: Path,
    deleted: DeletedImages,
    recognise: Recognise,
    image_shape: tuple[int, int, int],
    skip: Collection[Path] = (),
) -> ResidueReport:
    """Search every file below a folder for deleted images, hidden and temporary files too.

    Links are not followed; they are listed as not searched. Nothing is unpickled.

    Args:
        root: the folder.
        deleted: what is known of the deleted images.
        recognise: tells which ids, uint8 ``(m, 16)``, belong to deleted images: bool ``(m,)``.
        image_shape: ``(height, width, channels)`` of the deleted images.
        skip: files and folders to leave out, as paths like `root`; they are not listed.

    Raises:
        ValueError: `root` is no folder, or the images have another shape.
    """
    if not root.is_dir():
        raise ValueError(f"expected a folder to search, got {root}; name an existing run folder")
    wanted = Wanted.of(deleted, recognise, image_shape)
    skipped = {_location(path) for path in skip}
    entries = list(_walk(root, skipped))
    sizes: list[int] = []
    traces: dict[Path, list[Trace]] = {}
    with warnings.catch_warnings(), progress_bar(len(entries), "search for residue", unit="file") as bar:
        warnings.simplefilter("ignore")  # On damaged metadata and the like.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for entry in entries:
            path = entry.relative_to(root)
            traces[path] = [*_search_path(path, wanted), *_search_entry(entry, wanted, sizes)]
            bar.update()
    return _report(traces, sizes)


def _walk(folder: Path, skipped: Collection[Path]) -> Iterator[Path]:
    """Yield everything below a folder that can be listed, sorted, each folder before what lies in it."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return
    for path in sorted(folder.iterdir()):
        if _location(path) not in skipped:
            yield path
            if path.is_dir() and not path.is_symlink():
                yield from _walk(path, skipped)


def _location(path: Path) -> Path:
    """Return where a file or a link lies, not where it points to."""
    return path.parent.resolve() / path.name


def _search_path(path: Path, wanted: Wanted) -> Iterator[Trace]:
    """Search a path for ids and names, but for those that are in the path of its folder already."""
    above = _search_text(path.parent.as_posix(), wanted)
    yield from inside(
        "in the path", (hit for hit in _search_text(path.as_posix(), wanted) if hit not in above)
    )


def _search_text(text: str, wanted: Wanted) -> list[Hit]:
    return wanted.raw.search(np.frombuffer(os.fsencode(text), dtype=np.uint8))


def _search_entry(path: Path, wanted: Wanted, sizes: list[int]) -> Iterator[Trace]:
    """Search a file, and add its size to `sizes`; say of anything else that it is not searched."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            yield from inside("in its target", _search_text(os.fspath(path.readlink()), wanted))
            yield Unsearched(reason="a symbolic link, which is not followed")
        elif stat.S_ISREG(mode):
            data = _mapped(path)
            sizes.append(len(data))
            yield from search_contents(data, wanted, path.suffix)
        elif not stat.S_ISDIR(mode):
            yield Unsearched(reason="neither a file nor a folder")
        elif not os.access(path, os.R_OK | os.X_OK):
            yield Unsearched(reason="a folder that may not be read")
    except (OSError, MemoryError) as error:
        yield Unsearched(reason=f"it cannot be read: {error}")


def _mapped(path: Path) -> np.ndarray:
    """Map a file into memory as uint8 ``(bytes,)``."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return np.empty(0, dtype=np.uint8)
        return np.asarray(np.memmap(file, dtype=np.uint8, mode="r"))


def _report(traces: dict[Path, list[Trace]], sizes: list[int]) -> ResidueReport:
    findings, not_searched = [], []
    for path, found in traces.items():
        for hit in merged(trace for trace in found if isinstance(trace, Hit)):
            findings.append(Finding(path, hit.kind, hit.detail, len(hit.positions)))
        for gap in merged(trace for trace in found if isinstance(trace, Unsearched)):
            not_searched.append((path, ": ".join(filter(None, [gap.where, gap.reason]))))
    return ResidueReport(len(sizes), sum(sizes), tuple(findings), tuple(not_searched))
