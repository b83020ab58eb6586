"""Measure generators with a public core on digits: do private exemplars serve as well as core ones?

    python -m evaluation.public_core --out runs/public

Trains ``configs/digits_public.yaml``, and the same without pixel fusion and reorientation, on half of the
images of each class, and samples with the core and with the private images as exemplars. Then it trains both
without any core image of a class, and samples that class from private exemplars. Replays one run of each.
Writes ``evaluation/results/public_core.json``. Runs that are complete are found again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gen_unlearn.atomic import write_text
from gen_unlearn.commands.evaluate import find_judge
from gen_unlearn.commands.train import train
from gen_unlearn.commands.verify import replay
from gen_unlearn.config import load_config
from gen_unlearn.data import IndexedImages
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.judging.distances import measure_frechet
from gen_unlearn.judging.evidence import Measurer, Recogniser
from gen_unlearn.metrics.copying import nearest_images
from gen_unlearn.metrics.estimate import proportion
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.pipelines.sampling import sample_images
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.repro import software_versions
from gen_unlearn.runs import RunFolder
from gen_unlearn.training.classifier import JudgeFeatures

ROOT = Path(__file__).parent
RECIPE = ROOT.parent / "configs" / "digits_public.yaml"
FUSIONS = {
    "bottleneck": ["model.pixel_fusion_width=0", "training.reorientation=0", "sampling.guidance_scale=1.3"],
    "pixels": [],
}
PER_CLASS = 100
UNSEEN_IMAGES = 200


def main() -> None:
    """Parse the command line, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/public"), help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=1, help="training seeds")
    parser.add_argument("--unseen", nargs="*", default=["3", "8"], help="classes to leave out of the core")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="recipe override")
    parser.add_argument("--result", type=Path, default=ROOT / "results" / "public_core.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for fusion, changes in FUSIONS.items():
        for seed in range(arguments.seeds):
            settings = [*changes, *arguments.overrides, f"seed={seed}"]
            run = train(load_config(RECIPE, settings), arguments.out / f"{fusion}-{seed}", description=fusion)
            rows += [{"fusion": fusion, "seed": seed, **row} for row in _all_classes(run)]
            if seed:
                continue
            rows[-1]["replay"] = [str(check) for check in replay(run)]
            for name in arguments.unseen:
                left_out = [*settings, f"core.unseen_classes=['{name}']"]
                folder = arguments.out / f"{fusion}-without-{name}"
                run = train(load_config(RECIPE, left_out), folder, description=f"{fusion} without {name}")
                rows.append({"fusion": fusion, "seed": seed, **_unseen_class(run, name)})
    for row in rows:
        sys.stdout.write(f"{json.dumps(row)}\n")
    result = {
        "command": f"python -m evaluation.public_core --seeds {arguments.seeds}",
        "recipe": load_config(RECIPE).digest,
        "versions": software_versions(),
        "rows": rows,
    }
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.result, json.dumps(result, indent=2) + "\n")


def _all_classes(run: RunFolder) -> list[dict[str, Any]]:
    """Sample every class from the core and from the private images."""
    split = run.load_split()
    parts, judge = run.split_core(split.train), _judge(run, split.train)
    every = range(len(split.test.class_names))
    rows = []
    for kind, exemplars in (("core", parts.core), ("private", parts.deletable)):
        images, labels = _sample(run, exemplars, every, PER_CLASS)
        row = {"exemplars": kind, **_quality(judge, images, labels, split.test)}
        for gallery, held in (("core", parts.core), ("private", parts.deletable)):
            row[f"nearest_{gallery}"] = _median_distance(images, held.all_images())
        rows.append(row)
    return rows


def _unseen_class(run: RunFolder, name: str) -> dict[str, Any]:
    """Sample a class that the core has no image of, from private exemplars, and the other classes."""
    split = run.load_split()
    private, judge = run.split_core(split.train).deletable, _judge(run, split.train)
    unseen = split.test.class_index(name)
    images, _ = _sample(run, private, [unseen], UNSEEN_IMAGES)
    recognised = proportion(int((judge.recogniser.recognise(images) == unseen).sum()), len(images))
    own = private.select(np.flatnonzero(private.labels == unseen)).all_images()
    real = split.test.select(np.flatnonzero(split.test.labels == unseen)).all_images()
    seen = [label for label in range(len(split.test.class_names)) if label != unseen]
    test = split.test.select(np.flatnonzero(split.test.labels != unseen))
    return {
        "unseen_class": name,
        "recognised": recognised.value,
        "recognised_error": recognised.standard_error,
        "nearest_exemplar": _median_distance(images, own),
        "nearest_exemplar_of_real_images": _median_distance(real, own),
        "seen_classes": _quality(judge, *_sample(run, private, seen, PER_CLASS), test),
    }


def _sample(
    run: RunFolder, exemplars: IndexedImages, classes: Sequence[int], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sample `count` images of each class from some exemplars; return images and labels."""
    pipeline = run.load_pipeline()
    assert isinstance(pipeline, SemiParametricDDPMPipeline)
    pipeline = SemiParametricDDPMPipeline(
        pipeline.unet, pipeline.scheduler, ExemplarStore.from_images(exemplars), "public"
    )
    labels = np.repeat(np.array(classes), count)
    indices = np.tile(np.arange(count), len(classes))
    images = sample_images(pipeline, labels.tolist(), indices.tolist(), run.config.sampling)
    return images, labels


@dataclass(frozen=True)
class _Judge:
    """The classifier of a run, to recognise images and to measure distances in."""

    recogniser: Recogniser
    measurer: Measurer


def _judge(run: RunFolder, train: IndexedImages) -> _Judge:
    model = find_judge(run, train)
    return _Judge(Recogniser(model), Measurer(JudgeFeatures(model)))


def _quality(judge: _Judge, images: np.ndarray, labels: np.ndarray, test: IndexedImages) -> dict[str, Any]:
    """Judge images by the Frechet distance to held-out ones, and by how many are recognised."""
    features = judge.measurer.features
    generated = replace(features("generated", images), strata=labels)
    found = measure_frechet(generated, features("held-out", test.all_images()), ComparisonConfig())
    right = proportion(int((judge.recogniser.recognise(images) == labels).sum()), len(labels))
    return {
        "frechet": found.value,
        "frechet_error": found.standard_error,
        "accuracy": right.value,
        "accuracy_error": right.standard_error,
    }


def _median_distance(images: np.ndarray, gallery: np.ndarray) -> float:
    """Return the median distance of images to the nearest one of a gallery; pixels in [0, 1]."""
    return float(np.median(nearest_images(images, gallery)[0]))


if __name__ == "__main__":
    main()
