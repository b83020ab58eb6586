"""Find the images that a person asks to be forgotten among the exemplars of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gen_unlearn.commands.search import Found, Search, Selection
from gen_unlearn.decoding import image_files
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.forget import ForgetSet, read_list
from gen_unlearn.runs import RunFolder
from gen_unlearn.words import counted


@dataclass(frozen=True)
class ForgetRequest:
    """What a person asks to be forgotten; everything named is deleted together.

    Attributes:
        classes: names or indices of classes.
        images: image files, or folders of them; a copy of an image stands for the image.
        ids: hexadecimal sample ids.
        lists: text or CSV files of ids or image files.
        like: image files; every exemplar that is similar to one is selected.
        fraction: random share of all images, in (0, 1].
        seed: seed of that choice.
        near_duplicates: select also what is at least so similar to a selected image, in (0, 1].
        skip_unknown: leave out what is not among the exemplars instead of refusing the request.
        reason: kept in the receipt; made up from the rest when empty.
    """

    classes: Sequence[str] = ()
    images: Sequence[Path] = ()
    ids: Sequence[str] = ()
    lists: Sequence[Path] = ()
    like: Sequence[Path] = ()
    fraction: float | None = None
    seed: int = 0
    near_duplicates: float | None = None
    skip_unknown: bool = False
    reason: str = ""

    def resolve(self, run: RunFolder) -> Selection:
        """Find what is asked for among the exemplars of a run.

        Raises:
            ValueError: nothing is asked for, something that is not there, or an image of the public core.
        """
        present = run.exemplar_folder()
        return ExemplarFolder.read(present.path, lambda folder: self._resolve(Search(run, folder)))

    def _resolve(self, search: Search) -> Selection:
        """Resolve against one generation of the exemplars."""
        reasons = list(self._collect(search))
        if not reasons:
            raise ValueError(
                "nothing is asked for; name a class, an image, an id, a list, a fraction, or an image to "
                "find the like of"
            )
        search.find_named(self.skip_unknown)
        if self.near_duplicates is not None:
            search.add_near_duplicates(self.near_duplicates)
            reasons.append(f"near-duplicates from similarity {self.near_duplicates:g}")
        return search.selection(self.reason or " and ".join(reasons))

    def _collect(self, search: Search) -> Iterator[str]:
        """Hand every part of the request to the search, and yield what it is for the reason."""
        catalogue = search.catalogue
        if self.classes:
            for name in self.classes:
                search.select(ForgetSet.from_classes(catalogue, [name], "").ids, Found(f"class {name}"))
                search.note_core(name)
            yield f"class {', '.join(self.classes)}"
        if self.images:
            files = [file for path in self.images for file in _files(path)]
            search.name_files(files)
            yield counted(len(files), "image file")
        if self.ids:
            search.name_ids(self.ids)
            yield counted(len(self.ids), "id")
        for path in self.lists:
            entries = read_list(path, [path.parent, *search.source_folders])
            search.name_ids([entry for entry in entries if isinstance(entry, str)])
            search.name_files([entry for entry in entries if isinstance(entry, Path)])
            if not entries:
                raise ValueError(f"{path} names nothing; nothing was deleted")
            yield f"a list of {len(entries)}"
        if self.fraction is not None:
            chosen = ForgetSet.from_fraction(catalogue, self.fraction, self.seed)
            search.select(chosen.ids, Found("random"))
            yield f"random share {self.fraction:g}, seed {self.seed}"
        if self.like:
            similarity = search.copies_from if self.near_duplicates is None else self.near_duplicates
            search.add_alike(self.like, similarity)
            yield f"all like {len(self.like)} image files, from similarity {similarity:g}"


def _files(path: Path) -> list[Path]:
    """Return a file, or the image files below a folder.

    Raises:
        ValueError: a folder without images.
    """
    if not path.is_dir():
        return [path]
    files = image_files(path)
    if not files:
        raise ValueError(f"expected images below {path}, got none; nothing was deleted")
    return files
