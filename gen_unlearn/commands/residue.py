"""Audit a run for residue: gather what is known of the deleted images, and search every file for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from gen_unlearn.commands.derived import remaining
from gen_unlearn.decoding import decode_image, image_files
from gen_unlearn.exemplar_keys import BLOCK, image_keys
from gen_unlearn.key_bank import encode_keys
from gen_unlearn.pipelines.classification import SemiParametricPipeline
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import image_ids
from gen_unlearn.residue.deleted import DeletedImages
from gen_unlearn.residue.search import ResidueReport, search_residue
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
    return Audit(report, len(forgotten), known, remaining(run) if len(forgotten) else ())


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
    codes = _codes(run, pixels) if voting and known else None
    return DeletedImages(image_ids(pixels), pixels, tuple(names), tokens, shared, codes)


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


def _codes(run: RunFolder, images: np.ndarray) -> np.ndarray | None:
    """Return the codes of the keys that a classifier makes of images, int16 ``(n, length)``."""
    pipeline = run.load_classifier()
    if not isinstance(pipeline, SemiParametricPipeline):
        return None
    starts = range(0, len(images), BLOCK)
    parts = [encode_keys(image_keys(pipeline.network, images[start : start + BLOCK])) for start in starts]
    return np.concatenate(parts).reshape(len(images), -1)
