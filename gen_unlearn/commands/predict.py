"""Classify images with a run, and show which of its exemplars voted."""

from __future__ import annotations

import csv
import io
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gen_unlearn.atomic import write_text
from gen_unlearn.commands.classified import Prediction, classify
from gen_unlearn.decoding import decode_image, image_files
from gen_unlearn.exemplar_folder import ExemplarFolder
from gen_unlearn.pipelines.classification import SemiParametricPipeline
from gen_unlearn.progress import progress_bar
from gen_unlearn.report.votes import ShownPrediction, ShownVoter, draw_votes, percent
from gen_unlearn.repro import ids_from_hex, ids_to_hex
from gen_unlearn.runs import RunFolder
from gen_unlearn.words import counted

IMAGES_PER_SHEET = 20
MOST_SHOWN = 24
"""Exemplars that a sheet shows of one image at most."""

NO_PICTURES = {
    "parametric": "a parametric classifier has no exemplars that vote",
    "adapter-ensemble": "the adapters of an ensemble answer, not exemplars",
}
"""Kind of a classifier -> why nobody votes, and there are no pictures of it."""

NO_ANSWER = "no adapter answers"

_WEIGHTS_AT_A_TIME = 2**24
_FOOTERS = {
    "prototypes": "Who votes: prototypes. Each exemplar is averaged into the prototype of its class. The "
    "share of one of the predicted class is how far its score lies above the mean score of all prototypes, "
    "against the sum of this over the class; what lies below has none.",
    "exemplars": "Who votes: the {neighbours} exemplars with the highest scores. The share of each is its "
    "attention weight.",
    "nearest-neighbours": "Who votes: the {neighbours} exemplars with the nearest keys, one vote each.",
}


def images_below(source: Path) -> list[Path]:
    """Return an image file itself, or the image files below a folder at any depth.

    Raises:
        ValueError: there is none.
    """
    if not source.is_dir():
        if not source.exists():
            raise ValueError(f"expected an image file or a folder of them, got {source}, which is not there")
        return [source]
    files = image_files(source)
    if not files:
        raise ValueError(f"expected images below {source}, got none; check the path and the file suffixes")
    return files


def require_apart(out: Path, run: RunFolder, source: Path) -> None:
    """Check where pictures are to be written.

    Raises:
        ValueError: the folder lies in the run, where pictures of exemplars that are deleted later must not
            stay, or among the images to classify, or is a file.
    """
    if out.resolve().is_relative_to(run.path.resolve()):
        raise ValueError(
            f"expected a folder outside of the run, got {out}; what it shows should not stay there"
        )
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            f"expected a folder outside of {source}, got {out}; its pictures would be classified next time"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"expected a folder, got the file {out}; choose another --out")


def predict(run: RunFolder, files: Sequence[Path], voters: int = 8) -> list[Prediction]:
    """Classify image files, converted as the run's own images were.

    Args:
        run: a classifier.
        files: the images.
        voters: exemplars to name for each image at most; those with a share of 0 are left out.

    Raises:
        ImageDecodeError: an image cannot be decoded.
        ValueError: the run is a generator or has no exemplar left, or `voters` is below 1.
    """
    if voters < 1:
        raise ValueError(f"expected at least 1 voter for each image, got {voters}; leave out --voters for 8")
    pipeline, names = run.load_classifier(), run.manifest.class_names
    block = pipeline.prediction.batch_size
    if isinstance(pipeline, SemiParametricPipeline):
        block = min(block, max(1, _WEIGHTS_AT_A_TIME // max(1, len(pipeline.bank))))
    predictions: list[Prediction] = []
    with progress_bar(len(files), "classify") as progress:
        for start in range(0, len(files), block):
            part = files[start : start + block]
            file_names = [os.fsencode(file).decode("utf-8", "backslashreplace") for file in part]
            predictions += classify(pipeline, names, file_names, _decoded(run, part), voters)
            progress.update(len(part))
    return predictions


def write_predictions(
    run: RunFolder, files: Sequence[Path], predictions: Sequence[Prediction], out: Path
) -> list[Path]:
    """Write ``predictions.csv`` and, if exemplars voted, ``votes.png``, ``votes_2.png`` and so on.

    Where the class alone is told, the columns of probabilities are empty. A sheet shows 20 images, and 24
    exemplars of each at most. Sheets of an earlier call are replaced, so that none shows what was deleted
    since.

    Args:
        run: what classified the images.
        files: the images.
        predictions: as `predict` gives them for these files.
        out: folder to write, see `require_apart`.

    Returns:
        The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = run.manifest.class_names
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "class", "probability", *names])
    for one in predictions:
        numbers = (one.probability, *one.all_probabilities)
        told = ["" if one.label_only else f"{number:.6g}" for number in numbers]
        writer.writerow([one.name, one.class_name, *told])
    write_text(out / "predictions.csv", text.getvalue().encode("utf-8", "backslashreplace").decode())
    written = [out / "predictions.csv"]
    voted = run.recipe.model.kind not in NO_PICTURES
    for start in range(0, len(predictions) if voted else 0, IMAGES_PER_SHEET):
        part = slice(start, start + IMAGES_PER_SHEET)
        sheet = _sheet_path(out, len(written))
        subtitle = f"images {start + 1} to {min(part.stop, len(predictions))} of {len(predictions)}"
        rows, footer = shown_votes(run, predictions[part], _decoded(run, files[part]))
        draw_votes(rows, subtitle, footer).save(sheet, format="PNG", optimize=True)
        written.append(sheet)
    number = len(written)
    while _sheet_path(out, number).is_file():
        _sheet_path(out, number).unlink()
        number += 1
    return written


def table(predictions: Sequence[Prediction]) -> str:
    """Return a line for each image: file, class, probability, what came second.

    The probability is left out where no adapter answers, or while the class alone is told.
    """
    wide = min(60, max(len(one.name) for one in predictions))
    wide_class = min(30, max(len(one.class_name or NO_ANSWER) for one in predictions))
    lines = []
    for one in predictions:
        second = "".join(f"  (runner-up {name}, {percent(share)})" for name, share in one.probabilities[1:2])
        lines.append(
            f"{one.name:<{wide}}  {one.class_name or NO_ANSWER:<{wide_class}}  "
            f"{percent(one.probability) if one.class_name and not one.label_only else '':>7}{second}".rstrip()
        )
    return "\n".join(lines)


def notes_of(
    run: RunFolder, predictions: Sequence[Prediction], pictures: bool, voters: int | None
) -> list[str]:
    """Return what a reader of predictions has to know.

    Args:
        run: what classified the images.
        predictions: of the images.
        pictures: whether pictures of votes were asked for.
        voters: how many voters were asked for; `None` if nothing was said.
    """
    kind = run.recipe.model.kind
    notes = []
    if kind in NO_PICTURES:
        notes += [f"{NO_PICTURES[kind]}; votes.png is left out"] if pictures else []
        notes += [f"{NO_PICTURES[kind]}; --voters is ignored"] if voters is not None else []
    if run.is_ensemble:
        notes += _notes_of_adapters(run, any(one.label_only for one in predictions))
    return notes


def _notes_of_adapters(run: RunFolder, label_only: bool) -> list[str]:
    """Say which adapters do not answer, and until when the class alone is told."""
    config, waiting = run.classifier_config.model.adapters, len(run.adapter_folder().waiting)
    notes = []
    if waiting:
        verbs = "waits to be rebuilt and does not" if waiting == 1 else "wait to be rebuilt and do not"
        notes.append(
            f"{waiting:,} of {counted(config.count, 'adapter')} {verbs} answer: "
            f"gen-unlearn forget {shlex.quote(str(run.path))} --rebuild"
        )
    if label_only:
        until = run.held_back(config.release).until(config.release)
        notes.append(
            "label-only: adapters are held back until more of them has changed"
            f"{'' if until is None else f', or until {until} at the latest'}, so classes are told without "
            "their probabilities; to see these all the same: --set model.adapters.minimum_batch=1"
        )
    return notes


def _sheet_path(out: Path, number: int) -> Path:
    return out / ("votes.png" if number == 1 else f"votes_{number}.png")


def _decoded(run: RunFolder, files: Sequence[Path]) -> np.ndarray:
    """Decode images to what the run classifies, uint8 ``(n, height, width, channels)``."""
    height, width, channels = run.manifest.image_shape
    return np.stack([decode_image(file, size=(height, width), channels=channels) for file in files])


def shown_votes(
    run: RunFolder, predictions: Sequence[Prediction], images: np.ndarray
) -> tuple[list[ShownPrediction], str]:
    """Return the rows of a sheet and its footer; exemplars that were deleted meanwhile have no picture.

    Args:
        run: what classified the images.
        predictions: of each image.
        images: uint8 ``(n, height, width, channels)``.
    """
    voters = [one.voters[:MOST_SHOWN] for one in predictions]
    ids = ids_from_hex(dict.fromkeys(voter.id for part in voters for voter in part))
    held, count = ExemplarFolder.read(run.exemplars_path, lambda stored: (stored.select(ids), len(stored)))
    pictures = dict(zip(ids_to_hex(held.ids), held.pixels, strict=True))
    rows = []
    for one, part, image in zip(predictions, voters, images, strict=True):
        shown = tuple(ShownVoter(pictures.get(voter.id), voter.class_name, voter.weight) for voter in part)
        second = one.probabilities[1] if len(one.probabilities) > 1 else None
        rows.append(
            ShownPrediction(Path(one.name).name, image, one.class_name, one.probability, second, shown)
        )
    config = run.classifier_config.prediction
    footer = _FOOTERS[config.vote].format(neighbours=min(config.neighbours, count))
    return rows, f"{footer} The run has {count:,} exemplars."
