"""Search the exemplars of a run for what a person names: exactly, as a copy, or as something alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gen_unlearn.decoding import decode_image
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import class_index, first_few, unique_ids
from gen_unlearn.near_duplicates import copy_similarity, find_near_duplicates, nearest_candidates
from gen_unlearn.pixels import resize_images
from gen_unlearn.repro import among, ids_from_hex, ids_to_hex, image_id
from gen_unlearn.runs import RunFolder
from gen_unlearn.shards import Rows

_CANDIDATES = 3
_FEW_WRONG_DIGITS = 4


@dataclass(frozen=True)
class Found:
    """Why an image is selected.

    Attributes:
        how: such as "class 3", "id", "image cat.png" or "copy of cat.png".
        similarity: how alike it is to what was asked for, up to 1; 1 for what was asked for itself.
    """

    how: str
    similarity: float = 1.0


@dataclass(frozen=True)
class Selection:
    """The images that a request selects.

    Attributes:
        rows: the images, sorted by id.
        class_names: names of all classes.
        found: why each is selected, in the same order.
        reason: of the request.
        notes: what was asked for and cannot be deleted, for people.
    """

    rows: Rows
    class_names: tuple[str, ...]
    found: tuple[Found, ...]
    reason: str
    notes: tuple[str, ...]

    def count_by_class(self) -> dict[str, int]:
        """Return the number of selected images by class, without classes that have none."""
        counts = np.bincount(self.rows.labels)
        return {self.class_names[label]: int(counts[label]) for label in np.flatnonzero(counts).tolist()}

    @property
    def forget_set(self) -> ForgetSet:
        """The request for the store."""
        return ForgetSet(self.rows.ids, self.reason)


class _Named(NamedTuple):
    """An image that was asked for by id or file; `pixels` is `None` for an id."""

    name: str
    id: np.ndarray
    pixels: np.ndarray | None


@dataclass
class Search:
    """What a request has led to so far."""

    run: RunFolder
    catalogue: ExemplarFolder
    found: dict[bytes, Found] = field(default_factory=dict)
    named: list[_Named] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def source_folders(self) -> list[Path]:
        """The folder that the run's images came from, if it is one."""
        source = Path(self.run.recipe.data.source).expanduser()
        return [source] if source.is_dir() else []

    @cached_property
    def pool(self) -> Rows:
        """All exemplars, to search for similar ones."""
        return self.catalogue.all_rows()

    @cached_property
    def copies_from(self) -> float:
        """Similarity from which a file counts as a copy of an exemplar."""
        return copy_similarity(self.pool.pixels)

    def select(self, ids: np.ndarray, found: Found) -> None:
        """Select images by id; the first reason counts."""
        for row in ids:
            self.found.setdefault(row.tobytes(), found)

    def name_ids(self, texts: Sequence[str]) -> None:
        """Ask for images by id."""
        for row, text in zip(ids_from_hex(texts), texts, strict=True):
            self.named.append(_Named(text.lower(), row, None))

    def name_files(self, files: Sequence[Path]) -> None:
        """Ask for images by file."""
        for file in files:
            self.named.append(self._read(file))

    def note_core(self, class_name: str) -> None:
        """Note that the images of a class that are in a public core stay."""
        core, names = self.run.recipe.core, self.catalogue.class_names
        label = class_index(names, class_name)
        unseen = [class_index(names, name) for name in core.unseen_classes]
        if core.mode == "public" and label not in unseen:
            declared = "stay in the public core, which is declared non-deletable"
            self.notes.append(f"other images of class {names[label]} {declared}")

    def find_named(self, skip_unknown: bool) -> None:
        """Find what was asked for by id or file, exactly or as a copy; refuse or note what is not there."""
        if not self.named:
            return
        missing = []
        for named, held in zip(self.named, self.catalogue.holds(_ids(self.named)), strict=True):
            if held:
                how = "id" if named.pixels is None else f"image {named.name}"
                self.select(named.id[None], Found(how))
            else:
                missing.append(named)
        self._refuse_core(missing)
        missing = self._set_aside(missing, self._held_out, "held out for testing and in no model")
        missing = self._set_aside(missing, self.run.forgotten().mask, "deleted before")
        missing = self._select_copies(missing)
        if missing and not skip_unknown:
            raise ValueError(self._not_found(missing))
        if missing:
            self.notes.append(
                f"{len(missing)} of {len(self.named)} are not among the exemplars: {_few(missing)}"
            )
        if not self.found:
            raise ValueError(f"{'; '.join(self.notes)}; nothing was deleted")

    def add_near_duplicates(self, similarity: float) -> None:
        """Select everything that is similar to what is selected."""
        chosen = np.frombuffer(b"".join(self.found), dtype=np.uint8).reshape(-1, 16)
        queries = self.catalogue.select(chosen)
        alike = find_near_duplicates(queries.pixels, self.pool.pixels, similarity)
        for query, image, value in zip(alike.queries, alike.images, alike.similarities, strict=True):
            near = f"near-duplicate of {queries.ids[query].tobytes().hex()[:8]}..."
            self.select(self.pool.ids[image][None], Found(near, float(value)))

    def add_alike(self, files: Sequence[Path], similarity: float) -> None:
        """Select everything that is similar to some image files.

        Raises:
            ValueError: nothing is similar to one of them.
        """
        for file in files:
            named = self._read(file)
            assert named.pixels is not None, "read from a file"
            alike = find_near_duplicates(named.pixels[None], self.pool.pixels, similarity)
            if not len(alike.images):
                raise ValueError(self._not_found([named]))
            for image, value in zip(alike.images, alike.similarities, strict=True):
                self.select(self.pool.ids[image][None], Found(f"like {_shown(file)}", float(value)))

    def selection(self, reason: str) -> Selection:
        """Return what was found."""
        ids = np.frombuffer(b"".join(sorted(self.found)), dtype=np.uint8).reshape(-1, 16)
        rows = self.catalogue.select(ids)
        found = tuple(self.found[row.tobytes()] for row in rows.ids)
        return Selection(rows, self.catalogue.class_names, found, reason, tuple(self.notes))

    def _read(self, file: Path) -> _Named:
        """Read an image file as the run's data was read, and make the picture that exemplars are kept as."""
        height, width, channels = self.catalogue.image_shape
        image = decode_image(file, size=self.catalogue.decoded_size, channels=channels)
        picture = resize_images(image[None], (height, width))[0]
        return _Named(_shown(file), image_id(image), picture)

    def _held_out(self, ids: np.ndarray) -> np.ndarray:
        return among(ids, unique_ids(self.run.held_out_ids))

    def _refuse_core(self, missing: list[_Named]) -> None:
        core = among(_ids(missing), unique_ids(self.run.core_ids))
        if core.any():
            raise ValueError(
                f"{int(core.sum())} of {len(self.named)} are in the public core, which the recipe declares "
                f"non-deletable, as the weights are fit on it: {_few(list(compress(missing, core)))}; "
                f"nothing was deleted; to remove them, train again with another core"
            )

    def _set_aside(
        self, missing: list[_Named], test: Callable[[np.ndarray], np.ndarray], why: str
    ) -> list[_Named]:
        """Note the images that `test` tells by their ids, and return the others."""
        told = test(_ids(missing))
        if told.any():
            few = _few(list(compress(missing, told)))
            self.notes.append(f"{int(told.sum())} of {len(self.named)} are {why}: {few}")
        return list(compress(missing, ~told))

    def _select_copies(self, missing: list[_Named]) -> list[_Named]:
        """Select the exemplars that image files are copies of, and return what is no copy."""
        rest = []
        for named in missing:
            if named.pixels is None or not len(self.catalogue):
                rest.append(named)
                continue
            alike = find_near_duplicates(named.pixels[None], self.pool.pixels, self.copies_from)
            for image, value in zip(alike.images, alike.similarities, strict=True):
                self.select(self.pool.ids[image][None], Found(f"copy of {named.name}", float(value)))
            if not len(alike.images):
                rest.append(named)
        return rest

    def _not_found(self, missing: list[_Named]) -> str:
        """Say what is not there, and what comes nearest to the first of it."""
        count = len(self.named) or 1
        nearest = (
            self._nearest_id(missing[0]) if missing[0].pixels is None else self._nearest(missing[0].pixels)
        )
        threshold = "" if missing[0].pixels is None else f"; a copy counts from {self.copies_from:.2f}"
        return (
            f"{len(missing)} of {count} are not among the exemplars: {_few(missing)}; nearest to "
            f"{missing[0].name}: {nearest}{threshold}; nothing was deleted"
        )

    def _nearest(self, pixels: np.ndarray) -> str:
        candidates = min(_CANDIDATES, len(self.catalogue))
        if not candidates:
            return "no exemplar is left"
        similarities, rows = nearest_candidates(pixels[None], self.pool.pixels, candidates)
        classes = [self.catalogue.class_names[label] for label in self.pool.labels[rows[0]]]
        return ", ".join(
            f"{name} (class {label}, similarity {value:.2f})"
            for name, label, value in zip(
                ids_to_hex(self.pool.ids[rows[0]]), classes, similarities[0], strict=True
            )
        )

    def _nearest_id(self, named: _Named) -> str:
        digits = np.array([list(text) for text in ids_to_hex(self.catalogue.ids)])
        if not len(digits):
            return "no exemplar is left"
        differing = (digits != np.array(list(named.id.tobytes().hex()))).sum(axis=1)
        row = int(differing.argmin())
        if differing[row] > _FEW_WRONG_DIGITS:
            return f"no id, all differ in {differing[row]} digits or more"
        return f"{''.join(digits[row])} (differs in {differing[row]} digits)"


def _ids(named: Sequence[_Named]) -> np.ndarray:
    return np.array([one.id for one in named], dtype=np.uint8).reshape(-1, 16)


def _shown(file: Path) -> str:
    """Return a file's name with what is not UTF-8 in it escaped."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def _few(named: Sequence[_Named]) -> str:
    return first_few([one.name for one in named])
