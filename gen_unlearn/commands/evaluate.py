"""Judge a generator before and after deletion, against the data and against its oracle."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from accelerate import PartialState

from gen_unlearn.atomic import write_text
from gen_unlearn.commands.measures import (
    Deletion,
    Evidence,
    Judge,
    accuracy_per_class,
    measure_copies,
    measure_costs,
    measure_forgetting,
    measure_quality,
)
from gen_unlearn.data import IndexedImages
from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.pipelines.loading import served_classes
from gen_unlearn.repro import digest_json
from gen_unlearn.runs import RunFolder
from gen_unlearn.samples import SamplePlan, SampleSet, generate_samples
from gen_unlearn.training.classifier import JudgeClassifier, train_judge


def evaluate(run: RunFolder, oracle: RunFolder | None = None) -> Scorecard:
    """Measure a run as it is now, and what a deletion changed; write the scorecard into the run.

    Samples are kept in the run, so an evaluation before a deletion is what makes the comparison with
    after possible.

    Args:
        run: the run.
        oracle: the run that was trained without what was deleted from `run`.

    Raises:
        ValueError: the oracle is another run's, or of another deletion.
    """
    if oracle is not None:
        _require_matching_oracle(run, oracle)
    split = run.load_split()
    judge = find_judge(run, split.train)
    files, notes = _sample_states(run, oracle)
    samples = {state: SampleSet.from_file(path) for state, path in files.items()}
    oracle_again = samples.pop("oracle_again", None)
    evidence = Evidence(samples, oracle_again, find_deletion(run, split.train), split.test)
    trained_on = run.key.seal("data", run.split_core(split.train).digest)
    if run.manifest.without is None and run.manifest.data_digest != trained_on:
        notes.append("The source no longer holds the images that this run was trained on.")
    card = Scorecard(
        measures=(
            *measure_quality(judge, evidence),
            *measure_forgetting(judge, evidence, run.config.evaluation.images_per_class),
            *measure_copies(evidence),
            *measure_costs(run),
        ),
        protocol=_protocol(run, judge, evidence),
        accuracy_per_class={
            state: accuracy_per_class(judge, drawn, split.test.class_names)
            for state, drawn in samples.items()
        },
        samples={state: path.name for state, path in files.items()},
        notes=tuple(notes),
    )
    write_text(run.scorecard_path, card.to_json())
    return card


def _require_matching_oracle(run: RunFolder, oracle: RunFolder) -> None:
    """Refuse an oracle that was not trained on exactly what is retained, by the same recipe."""
    forgotten = run.forgotten()
    if not len(forgotten):
        raise ValueError(f"nothing was deleted from {run.path}, so it has no oracle; leave --oracle out")
    if oracle.manifest.recipe_digest != run.manifest.recipe_digest:
        raise ValueError(f"{oracle.path} was trained from another recipe than {run.path}")
    if oracle.manifest.without != forgotten.digest or len(oracle.ledger.lines) > 1:
        raise ValueError(
            f"{oracle.path} was not trained without exactly what was deleted from {run.path}; "
            f"train it with: gen-unlearn train --config {run.recipe_path} --without {run.path} --out DIR"
        )


def find_judge(run: RunFolder, train: IndexedImages) -> Judge:
    """Load the run's judge, training it on the training split the first time."""
    config, seed = run.config.evaluation.judge, run.config.evaluation.judge_seed
    made_from = run.key.seal("judge", digest_json([asdict(config), seed, train.digest]))
    folder = run.metrics_path / f"judge-{made_from[:12]}"
    device = PartialState().device
    if not folder.exists():
        model = train_judge(train.all_images(), train.labels, len(train.class_names), config, seed, device)
        unfinished = run.metrics_path / "judge.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        unfinished.rename(folder)
    return Judge(JudgeClassifier.from_pretrained(folder, local_files_only=True).to(device).eval())


def sample_plan(run: RunFolder) -> SamplePlan:
    """Return the set of samples that a run is judged by."""
    config = run.config.evaluation
    return SamplePlan(config.images_per_class, config.null_images, 0, run.config.sampling)


def _sample_states(run: RunFolder, oracle: RunFolder | None) -> tuple[dict[str, Path], list[str]]:
    """Sample every state that can still be sampled; return the files by state, and what could not be done.

    All samples lie in the folder of `run`, those of its oracle included.
    """
    plan = sample_plan(run)
    files: dict[str, Path] = {}
    notes: list[str] = []
    receipts = run.receipts()
    if not receipts:
        return {"before": _sample(run, plan, run.samples_path, "sample before")}, notes
    before = plan.path(run.samples_path, run.first_state_digest())
    if before.exists():
        files["before"] = before
    else:
        notes.append("No samples were made before the deletion: run evaluate before forget to compare.")
    files["after"] = _sample(run, plan, run.samples_path, "sample after")
    if oracle is None:
        notes.append("No oracle was given: what retraining would have done is not known.")
        return files, notes
    files["oracle"] = _sample(oracle, plan, run.samples_path, "sample oracle")
    fresh_noise = SamplePlan(plan.images_per_class, 0, plan.images_per_class, plan.sampling)
    files["oracle_again"] = _sample(oracle, fresh_noise, run.samples_path, "sample oracle again")
    return files, notes


def _sample(generator: RunFolder, plan: SamplePlan, folder: Path, description: str) -> Path:
    """Sample the present state of a run, unless that was done before; return the file."""
    path = plan.path(folder, generator.state_digest())
    if not path.exists():
        pipeline = generator.load_pipeline()
        generate_samples(pipeline, served_classes(pipeline), plan, description).save(path)
    return path


def find_deletion(run: RunFolder, train: IndexedImages) -> Deletion:
    """Find what was deleted from a run among the training images of its source."""
    every = range(len(run.manifest.class_names))
    left = set(run.load_exemplars().labels.tolist()) if run.is_semi_parametric else set(every)
    retained = tuple(label for label in every if label in left)
    forgotten = run.forgotten()
    if not len(forgotten):
        return Deletion((), retained, train.select(np.empty(0, dtype=np.int64)), train)
    names = {name for receipt in run.receipts() for name in receipt.removed_per_class}
    classes = tuple(
        label for label in every if label not in left and run.manifest.class_names[label] in names
    )
    leaving = forgotten.mask(train.ids)
    return Deletion(
        classes, retained, train.select(np.flatnonzero(leaving)), train.select(np.flatnonzero(~leaving))
    )


def _protocol(run: RunFolder, judge: Judge, evidence: Evidence) -> dict[str, object]:
    return {
        "state": run.state_digest(),
        "extractor": judge.extractor.name,
        "extractor_digest": judge.extractor.digest,
        "resize": "none",
        "image_shape": list(evidence.test.image_shape),
        "quantisation": "uint8, once, before any measure",
        "data": run.config.data.source,
        "held_out_images": len(evidence.test),
        "forgotten_classes": [evidence.test.class_names[label] for label in evidence.deletion.classes],
        "deleted_images": len(evidence.deletion.images),
        "images_per_class": run.config.evaluation.images_per_class,
        "null_images": run.config.evaluation.null_images,
        "sampling": asdict(run.config.sampling),
        "training_seed": run.config.seed,
        "standard_errors": "of sampling, with images as independent; training seeds are not in them",
    }
