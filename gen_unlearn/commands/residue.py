"""Audit a run for residue: gather what is known of the deleted images, and search every file for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from gen_unlearn.adapters.encoding import block_codes
from gen_unlearn.adapters.routing import route
from gen_unlearn.commands.derived import remaining
from gen_unlearn.data import IndexedImages
from gen_unlearn.decoding import decode_image, image_files
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.exemplar_keys import BLOCK, image_keys
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.key_bank import encode_keys, key_scale
from gen_unlearn.pipelines.adapter_ensemble import AdapterEnsemblePipeline
from gen_unlearn.pipelines.classification import SemiParametricPipeline
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.pixels import resize_images, to_model_input
from gen_unlearn.repro import ID_BYTES, id_keys, image_ids
from gen_unlearn.residue.codes import CodeMatcher
from gen_unlearn.residue.deleted import DeletedImages
from gen_unlearn.residue.search import ResidueReport, search_residue
from gen_unlearn.residue.tokens import FEWEST_VALUES
from gen_unlearn.runs import RunFolder

_BATCH = 256


@dataclass(frozen=True)
class Audit:
    """What a search for residue found.

    Attributes:
        report: the findings.
        deleted: number of deleted images.
        known: how many of them the search had the pixels of; the others are recognised by their tombstones
            only, which finds whole images and ids but not parts of a larger picture.
        left: what may carry traces that no search can find, and why.
    """

    report: ResidueReport
    deleted: int
    known: int
    left: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether every file could be searched and nothing was found."""
        return self.report.clean

    def lines(self) -> list[str]:
        """Return the audit for people."""
        report = self.report
        megabytes = report.bytes_searched / 1e6
        searched = (
            f"{report.files_searched} files, {megabytes:.1f} MB searched for {self.deleted} deleted images, "
            f"{self.known} of them by their pixels"
        )
        found = [f"FOUND   {one.path}: {one.kind}, {one.count} x ({one.detail})" for one in report.findings]
        skipped = [f"FAILED  {path}: not searched: {reason}" for path, reason in report.not_searched]
        left = [f"left    {what}" for what in self.left]
        verdict = "ok      residue: none, " if self.clean else "FAILED  residue: "
        return [f"{verdict}{searched}", *found, *skipped, *left]

    def facts(self) -> dict[str, Any]:
        """Return the audit as values that JSON can hold."""
        return self.report.to_dict() | {
            "deleted": self.deleted,
            "known_by_pixels": self.known,
            "left": list(self.left),
        }


def audit(run: RunFolder, copies: Sequence[Path] = ()) -> Audit:
    """Search every file of a run for what was deleted from it.

    The deleted images are known by their pixels if the run's source still has them, or if they are given.

    Args:
        run: the run.
        copies: image files, or folders of them, with deleted images.
    """
    forgotten = run.forgotten()
    deleted = _gather(run, copies)
    with run.change.settled():
        report = search_residue(run.path, deleted, forgotten.mask, run.manifest.image_shape)
    known = len({row.tobytes() for row in deleted.ids})
    left = (*remaining(run), *_too_short(deleted)) if len(forgotten) else ()
    return Audit(report, len(forgotten), known, left)


def _gather(run: RunFolder, copies: Sequence[Path]) -> DeletedImages:
    """Collect pixels and names of deleted images from the source and from copies."""
    forgotten, shape = run.forgotten(), run.manifest.image_shape
    images: list[np.ndarray] = [np.empty((0, *shape), dtype=np.uint8)]
    names: list[str] = []
    try:
        train = run.load_split().train
    except (ValueError, OSError):  # The source is gone, or has none of these images: then they are not known.
        train = None
    shared: frozenset[str] = frozenset()
    if train is not None:
        leaving = forgotten.mask(train.ids)
        rows = train.select(np.flatnonzero(leaving))
        images.append(rows.all_images())
        names += rows.names
        kept = np.flatnonzero(~leaving).tolist()
        shared = frozenset(PurePosixPath(train.names[row]).name for row in kept)
    height, width, channels = shape
    for file in (file for path in copies for file in (image_files(path) if path.is_dir() else [path])):
        pixels = decode_image(file, size=(height, width), channels=channels)[None]
        if not forgotten.mask(image_ids(pixels)).any():
            raise ValueError(f"{file} was not deleted from {run.path}; name images that were")
        images.append(pixels)
        names.append(file.name)
    pixels = np.concatenate(images)
    voting, known = run.recipe.task == "classification", len(pixels) > 0
    tokens = None if voting or not known else _tokens(run, pixels)
    codes, scale = _codes(run, pixels) if voting and known else (None, 1)
    pictures = _pictures(run, pixels) if known else None
    deleted = DeletedImages(
        image_ids(pixels), pixels, tuple(names), tokens, shared, codes, code_scale=scale, pictures=pictures
    )
    if train is None or (codes is None and pictures is None):
        return deleted
    return _without_lookalikes(run, deleted, train)


def _pictures(run: RunFolder, images: np.ndarray) -> np.ndarray | None:
    """Return images as the run keeps them, uint8 ``(n, height, width, channels)``; `None` if as they are."""
    if not run.has_exemplars or run.exemplar_folder().image_shape == images.shape[1:]:
        return None
    return resize_images(images, run.exemplar_folder().image_shape[:2])


def _without_lookalikes(run: RunFolder, deleted: DeletedImages, train: IndexedImages) -> DeletedImages:
    """Allow for retained exemplars with the same picture, or nearly the same key, as a deleted image.

    Such a picture says nothing and is left out. What the exemplars have is computed from the source again.
    """
    ids = ExemplarFolder.read(run.exemplars_path, lambda folder: _lookalikes(folder, deleted))
    ids = ids[train.holds(ids) & ~run.forgotten().mask(ids)]
    if not len(ids):
        return deleted
    retained, pictures = train.select(train.rows_of(ids)).all_images(), deleted.pictures
    if pictures is not None:
        others = id_keys(image_ids(resize_images(retained, (pictures.shape[1], pictures.shape[2]))))
        pictures = pictures[~np.isin(id_keys(image_ids(pictures)), others)]
    return replace(deleted, pictures=pictures, retained_codes=_codes(run, retained)[0])


def _lookalikes(folder: ExemplarFolder, deleted: DeletedImages) -> np.ndarray:
    """Return the ids of the exemplars whose picture or key may be one of a deleted image: ``(n, 16)``."""
    found = [np.empty((0, ID_BYTES), np.uint8)]
    pictures = None if deleted.pictures is None else id_keys(image_ids(deleted.pictures))
    matcher = None if deleted.codes is None else CodeMatcher.of(deleted)
    for rows in map(folder.rows_of, folder.shards()):
        if pictures is not None:
            found.append(rows.ids[np.isin(id_keys(image_ids(rows.pixels)), pictures)])
        if matcher is not None and rows.codes is not None:
            found.append(rows.ids[matcher.find(rows.codes)])
    return unique_ids(np.concatenate(found))


def _too_short(deleted: DeletedImages) -> Iterator[str]:
    """Say which encodings are not searched for, as chance repeats them."""
    for noun, rows in (("tokens", deleted.tokens), ("keys", deleted.codes)):
        values = 0 if rows is None else math.prod(rows.shape[1:])
        if 0 < values < FEWEST_VALUES:
            yield f"copies of encoded images: {noun} of {values} numbers are too short to be searched for"


@torch.no_grad()
def _tokens(run: RunFolder, images: np.ndarray) -> np.ndarray | None:
    """Return what the model's encoder makes of images, float32 ``(n, numbers)``."""
    pipeline = run.load_pipeline()
    if not isinstance(pipeline, SemiParametricDDPMPipeline):
        return None
    unet = pipeline.unet
    parts = []
    for start in range(0, len(images), _BATCH):
        inputs = to_model_input(images[start : start + _BATCH]).to(unet.device, unet.dtype)
        parts.append(unet.encode_exemplars(inputs).keys.float().cpu().numpy())
    return np.concatenate(parts)


def _codes(run: RunFolder, images: np.ndarray) -> tuple[np.ndarray | None, int]:
    """Return the codes that a classifier keeps of images, int16 ``(n, length)``, and their scale."""
    pipeline = run.load_classifier()
    if isinstance(pipeline, AdapterEnsemblePipeline):
        return _record_codes(pipeline, images), 1
    if not isinstance(pipeline, SemiParametricPipeline):
        return None, 1
    starts = range(0, len(images), BLOCK)
    parts = [encode_keys(image_keys(pipeline.network, images[start : start + BLOCK])) for start in starts]
    scale = key_scale(pipeline.network.config.key_dim)
    return np.concatenate(parts).reshape(len(images), -1), scale


def _record_codes(pipeline: AdapterEnsemblePipeline, images: np.ndarray) -> np.ndarray:
    """Return what an adapter ensemble keeps of images: features and routes, int16 ``(n, length)``."""
    starts, recipe = range(0, len(images), BLOCK), pipeline.recipe
    parts = [block_codes(pipeline.network, images[start : start + BLOCK]) for start in starts]
    codes = np.concatenate(parts)
    return np.concatenate([codes, route(codes, recipe.keys, recipe.neighbours)], axis=1)
