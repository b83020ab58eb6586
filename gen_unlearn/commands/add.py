"""Add exemplars to a run, without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gen_unlearn.changes import ADAPTERS, EXEMPLARS, LOCK_SECONDS
from gen_unlearn.commands.ensemble_changes import extend
from gen_unlearn.commands.trained_classifier import encode_again
from gen_unlearn.commit_record import StagedChange
from gen_unlearn.data import IndexedImages, load_folder
from gen_unlearn.exemplar_changes import stage_addition
from gen_unlearn.image_sources import ALL_IMAGES, index_encoded
from gen_unlearn.indexed_images import class_index, first_few, unique_ids
from gen_unlearn.repro import among
from gen_unlearn.run_records import stores_digest
from gen_unlearn.runs import RunFolder
from gen_unlearn.shards import Rows


def read_new_images(run: RunFolder, source: Path, class_name: str | None) -> IndexedImages:
    """Read the images to add: a file, or a folder with one sub-folder per class or of one class.

    Args:
        run: the run, whose conversion and classes count.
        source: the file or folder.
        class_name: class of all images, by name or index; needed unless sub-folders tell it.

    Raises:
        ValueError: an unknown class, or none for images that need one.
    """
    folder = run.exemplar_folder()
    size, channels = folder.decoded_size, folder.image_shape[2]
    if source.is_dir():
        data = load_folder(source, size=size, channels=channels)
    else:
        data = index_encoded(
            [source],
            labels=np.zeros(1, dtype=np.int64),
            class_names=(ALL_IMAGES,),
            names=[str(source)],
            size=size,
            channels=channels,
            on_error="raise",
            memory_limit=2**62,
        )
    names = folder.class_names
    if class_name is not None:
        labels = np.full(len(data), class_index(names, class_name), dtype=np.int64)
    elif set(data.class_names) <= set(names):
        labels = np.array([names.index(name) for name in data.class_names])[data.labels]
    else:
        unknown = sorted(set(data.class_names) - set(names))
        raise ValueError(
            f"expected sub-folders named after classes of the run, got {first_few(unknown)}; the classes are "
            f"{list(names)}; rename them, or name one class for all images with --class"
        )
    return IndexedImages(data.all_images(), labels, data.ids, names, data.names)


def add(run: RunFolder, data: IndexedImages, wait: float = LOCK_SECONDS) -> int:
    """Add images to the exemplars of a run, on disk; return how many were new.

    Args:
        run: the run.
        data: the images, with the run's classes.
        wait: seconds to wait for another change of the run.

    Raises:
        ValueError: an image was deleted from the run before, is held out for testing or part of the public
            core; nothing is added.
    """
    with run.change.prepared(wait) as prepared:
        folder, ledger = run.exemplar_folder(), run.ledger
        run.require_own_state(folder, ledger)
        _refuse(data, ledger.tombstones.mask(data.ids), "were deleted from this run, and stay deleted")
        _refuse(data, among(data.ids, unique_ids(run.held_out_ids)), "are held out for testing")
        _refuse(data, among(data.ids, unique_ids(run.core_ids)), "are in the public core already")
        rows = _exemplars(run, data)
        change = stage_addition(folder, rows, prepared.staging(EXEMPLARS))
        added = sum(change.changed_per_label.values())
        if added:
            changes: dict[str, StagedChange] = {EXEMPLARS: change}
            digest, private = change.digest, dict[str, bytes]()
            environments: tuple[str, ...] | None = None
            if run.is_ensemble:
                adapters, private, environments = extend(run, folder, rows, prepared)
                changes[ADAPTERS] = adapters
                digest = stores_digest(change.digest, adapters.digest)
            entry = ledger.following(
                "added", digest, images=added, remaining=change.count, environments=environments
            )
            prepared.commit(changes, entry, ledger.size, private=private)
    return added


def _exemplars(run: RunFolder, data: IndexedImages) -> Rows:
    """Return images as exemplars of a run, with the keys or routes that its encoder gives them."""
    if run.recipe.task == "classification" or run.is_ensemble:
        rows = encode_again(run, data).exemplars
        assert rows is not None, "a run with exemplars is semi-parametric"
        return rows
    return Rows(data.all_images(), data.labels, data.ids)


def _refuse(data: IndexedImages, known: np.ndarray, why: str) -> None:
    if known.any():
        names = [data.names[row] for row in np.flatnonzero(known)]
        raise ValueError(
            f"{len(names)} of {len(data)} images {why}: {first_few(names)}; nothing was added; leave them out"
        )
