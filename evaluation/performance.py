"""Measure speed as ratios, in one run, on this machine.

    python -m evaluation.performance

Each row is a median over repeats with its spread, and names what it is compared with and its target. Writes
``evaluation/results/performance.json`` and prints the table. ``--only measures`` times one part and keeps the
other rows of the result.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from evaluation.classifier_speed import classifier_rows
from evaluation.ensemble_speed import ensemble_rows
from evaluation.timing import Row, seconds_of
from gen_unlearn.atomic import write_text
from gen_unlearn.commands.forget import forget
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.data import IndexedImages, load_split
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.image_sets import ImageArray
from gen_unlearn.judging.distances import measure_frechet
from gen_unlearn.manifest import RunManifest, TrainingRecord
from gen_unlearn.metrics.cost import median_ratio, sampling_overhead
from gen_unlearn.metrics.data_copying import authenticity, copying_z, mean_minimum_cosine_distance
from gen_unlearn.metrics.extractors.random_conv import RandomConvFeatures
from gen_unlearn.metrics.feature_sets import FeatureSet, measure_features
from gen_unlearn.metrics.kernel import kernel_distance_estimate, permutation_p_value
from gen_unlearn.metrics.manifold import manifold_metrics
from gen_unlearn.metrics.protocol import ComparisonConfig
from gen_unlearn.models.denoiser import build_denoiser
from gen_unlearn.pipelines.class_conditional import ClassConditionalDDPMPipeline
from gen_unlearn.pipelines.denoising import build_sampler
from gen_unlearn.pipelines.loading import weights_digest
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.repro import image_ids, numpy_generator, software_versions
from gen_unlearn.runs import RunFolder
from gen_unlearn.training.batches import (
    ClassConditioning,
    Conditioning,
    DiffusionBatches,
    ExemplarConditioning,
)
from gen_unlearn.training.diffusion import train_diffusion

ROOT = Path(__file__).parent
MEASURED = 10_000


def main() -> None:
    """Measure every row, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, help="timed pairs of each row")
    parser.add_argument("--result", type=Path, default=ROOT / "results" / "performance.json")
    kinds = ["models", "deletion", "measures", "classifiers", "ensembles"]
    parser.add_argument("--only", choices=kinds, help="time this part alone")
    arguments = parser.parse_args()
    config = load_config(ROOT.parent / "configs" / "digits_spm.yaml")
    data = load_split(config.data).train
    few = min(arguments.repeats, 5)
    parts: dict[str, Callable[[], list[Row]]] = {
        "models": lambda: [
            *sampling_rows(config, data, arguments.repeats),
            training_row(config, data, arguments.repeats),
        ],
        "deletion": lambda: [
            *deletion_rows(data, arguments.repeats),
            *disk_rows(config, 50_000, arguments.repeats),
            *disk_rows(config, 1_000_000, few),
        ],
        "measures": lambda: measure_rows(few),
        "classifiers": lambda: classifier_rows(few),
        "ensembles": lambda: ensemble_rows(few),
    }
    chosen = [arguments.only] if arguments.only else list(parts)
    rows = [row for part in chosen for row in parts[part]()]
    for row in rows:
        sys.stdout.write(f"{row}\n")
    machine = {"cpu_threads": torch.get_num_threads(), "machine": platform.machine()}
    result = {"command": "python -m evaluation.performance", "recipe": config.digest, "machine": machine}
    kept = []
    if arguments.only and arguments.result.exists():
        timed = {row.work for row in rows}
        earlier = json.loads(arguments.result.read_text(encoding="utf-8"))["rows"]
        kept = [row for row in earlier if row["work"] not in timed]
    result |= {"versions": software_versions(), "rows": [*kept, *(asdict(row) for row in rows)]}
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.result, json.dumps(result, indent=2) + "\n")


def pipelines(
    config: RunConfig, data: IndexedImages
) -> tuple[SemiParametricDDPMPipeline, ClassConditionalDDPMPipeline]:
    """Build both pipelines of one size with fresh weights: speed does not depend on training."""
    classes = len(data.class_names)
    sampler = build_sampler(config.sampling.sampler, config.noise.build())
    spm = build_denoiser(config.model, data.image_shape, classes).eval()
    plain = build_denoiser(replace(config.model, kind="class-conditional"), data.image_shape, classes).eval()
    return (
        SemiParametricDDPMPipeline(spm, sampler, ExemplarStore.from_images(data)),
        ClassConditionalDDPMPipeline(plain, sampler),
    )


def sampling_rows(config: RunConfig, data: IndexedImages, repeats: int) -> list[Row]:
    """Time sampling per image, with and without guidance."""
    spm, plain = pipelines(config, data)
    labels = [index % len(data.class_names) for index in range(100)]
    rows = []
    for guidance in (1.3, 1.0):
        timed = replace(config.sampling, guidance_scale=guidance)
        overhead = sampling_overhead(spm, plain, labels, timed, repeats)
        work = f"SPM sampling, {timed.exemplars_per_class} exemplars per class, guidance {guidance:g}"
        rows.append(
            Row(work, "plain DDPM of the same size", overhead.value, overhead.standard_error, "x", 1.1)
        )
    return rows


def training_row(config: RunConfig, data: IndexedImages, repeats: int) -> Row:
    """Time 20 training steps of both models on the same images."""
    classes, steps = len(data.class_names), 20
    training = replace(config.training, images=steps * config.training.batch_size)
    smallest, largest = training.exemplars_per_class
    store = ExemplarStore.from_images(data)
    exemplars = ExemplarConditioning(
        data, store, smallest, largest, training.exemplar_dropout, None, training.label_dropout, config.seed
    )
    labels = ClassConditioning(data.labels, classes, training.label_dropout, config.seed)
    accelerator = Accelerator()

    def seconds(kind: str, conditioning: Conditioning) -> float:
        model = build_denoiser(replace(config.model, kind=kind), data.image_shape, classes)
        batches = DiffusionBatches(data, conditioning, training.batch_size, steps, 1000, config.seed)
        return seconds_of(
            lambda: train_diffusion(model, config.noise.build(), batches, training, accelerator, None, kind)
        )

    pairs = [
        (seconds("semi-parametric", exemplars), seconds("class-conditional", labels)) for _ in range(repeats)
    ]
    ratio = median_ratio(pairs[1:])
    work = f"SPM training step, {smallest} to {largest} exemplars per class"
    return Row(work, "plain DDPM step, same images", ratio.value, ratio.standard_error, "x", 1.5)


def deletion_rows(data: IndexedImages, repeats: int) -> list[Row]:
    """Time deletions inside the process, with the digests of the receipt."""
    draws = numpy_generator(0, "performance")
    noise = draws.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    labels = draws.integers(0, 10, len(noise))
    names = tuple(str(label) for label in range(10))
    large = IndexedImages(noise, labels, image_ids(noise), names, tuple(map(str, range(len(noise)))))
    cases = [
        ("one class of the digits", data, data.labels == 3, 50.0),
        ("1 of 50,000 CIFAR-size images", large, np.arange(len(noise)) == 7, 100.0),
        ("5,000 of 50,000 CIFAR-size images", large, np.arange(len(noise)) < 5000, 1000.0),
    ]
    rows = []
    for work, images, leaving, target in cases:
        store = ExemplarStore.from_images(images)
        forget = ForgetSet(images.ids[leaving], "performance")
        milliseconds = []
        for _ in range(repeats):
            milliseconds.append(1000 * store.delete(forget).seconds)
            store.add(images.select(np.flatnonzero(leaving)))
        spread = 1.4826 * float(np.median(np.abs(milliseconds - np.median(milliseconds))))
        rows.append(Row(f"delete {work}", "-", float(np.median(milliseconds)), spread, " ms", target))
    return rows


def disk_rows(config: RunConfig, count: int, repeats: int) -> list[Row]:
    """Time `gen-unlearn forget` without its start: shards, receipt and ledger, all flushed to disk.

    The exemplars are noise of CIFAR's size. Every repeat deletes other images of the same run.
    """
    draws = numpy_generator(0, "disk", count)
    targets = {1: 100.0, 5000: 1000.0}
    rows = []
    with tempfile.TemporaryDirectory(dir=ROOT) as scratch:
        run, ids = _run_of_noise(config, count, Path(scratch) / "run")
        order = draws.permutation(count)
        for size in (1, 1000, 5000 if count == 50_000 else 10_000):
            milliseconds, written = [], []
            for _ in range(max(2, repeats * 2 // 3) if size > 1 else repeats):
                leaving, order = order[:size], order[size:]
                before = set(run.exemplars_path.iterdir())
                took = seconds_of(lambda leaving=leaving: forget(run, ForgetSet(ids[leaving], "performance")))
                milliseconds.append(1000 * took)
                written.append(
                    sum(path.stat().st_size for path in set(run.exemplars_path.iterdir()) - before)
                )
            work = f"forget {size:,} of {count:,} exemplars of 32 x 32 on disk"
            note = f"writes {np.median(written) / 1e6:.1f} MB"
            spread = 1.4826 * float(np.median(np.abs(milliseconds - np.median(milliseconds))))
            rows.append(Row(work, note, float(np.median(milliseconds)), spread, " ms", targets.get(size)))
    return rows


def measure_rows(repeats: int) -> list[Row]:
    """Time each measure of 10,000 generated against 10,000 real images, beside extracting their features."""
    draws = numpy_generator(0, "measures")
    images = draws.integers(0, 256, (2, MEASURED, 32, 32, 3), dtype=np.uint8)
    extractor, config = RandomConvFeatures(), ComparisonConfig()

    def extract() -> list[FeatureSet]:
        return [measure_features(ImageArray("noise", part), extractor) for part in images]

    generated, reference = extract()
    x, y = generated.array(), reference.array()
    measures: dict[str, Callable[[], object]] = {
        "Frechet distance, error and bias": lambda: measure_frechet(generated, reference, config),
        "kernel distance and error": lambda: kernel_distance_estimate(x, y),
        "p-value from 200 permutations": lambda: permutation_p_value(x, y),
        "precision, recall, density, coverage": lambda: manifold_metrics(real=y, generated=x),
        "authenticity": lambda: authenticity(train=y, generated=x),
        "copying z (C_T)": lambda: copying_z(train=y, test=y[::2], generated=x),
        "MiFID's divisor": lambda: mean_minimum_cosine_distance(train=y, generated=x),
    }
    rows = []
    for name, measure in measures.items():
        ratio = median_ratio([(seconds_of(measure), seconds_of(extract)) for _ in range(repeats)])
        work = f"{name}, {MEASURED:,} against {MEASURED:,} images"
        rows.append(Row(work, "extracting 64 random features", ratio.value, ratio.standard_error, "x", None))
    return rows


def _run_of_noise(config: RunConfig, count: int, path: Path) -> tuple[RunFolder, np.ndarray]:
    """Make a run whose exemplars are noise and whose network is as good as none; return it and the ids."""
    draws = numpy_generator(0, "noise", count)
    pixels = draws.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    names = tuple(str(label) for label in range(10))
    data = IndexedImages(pixels, draws.integers(0, 10, count), image_ids(pixels), names, ("",) * count)
    unet = build_denoiser(config.model, (8, 8, 1), len(names)).eval()
    sampler = build_sampler(config.sampling.sampler, config.noise.build())
    pipeline = SemiParametricDDPMPipeline(unet, sampler, ExemplarStore.from_images(data))
    manifest = RunManifest(config.digest, data.digest, names, data.image_shape)
    run = RunFolder.create(path, config, manifest)
    run.complete_training(pipeline, TrainingRecord(0.0, 0, 0.0, 0, weights_digest(pipeline)))
    return run, data.ids


if __name__ == "__main__":
    main()
