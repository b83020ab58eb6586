"""Judge a generator before and after deletion, against the data and against its oracles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from gen_unlearn.atomic import write_text
from gen_unlearn.commands.oracles import require_oracle
from gen_unlearn.data import IndexedImages
from gen_unlearn.image_sets import EncodedImageSet, open_distinct
from gen_unlearn.judging.classes import accuracy_per_class, confusion, measure_forgetting
from gen_unlearn.judging.copies import measure_copies
from gen_unlearn.judging.costs import measure_costs
from gen_unlearn.judging.distances import detection_notes, require_enough
from gen_unlearn.judging.evidence import Deletion, Evidence, Measurer, Recogniser
from gen_unlearn.judging.leakage import measure_leakage
from gen_unlearn.judging.quality import measure_accuracy, measure_folders, measure_quality
from gen_unlearn.judging.retrain import measure_retraining
from gen_unlearn.metrics.extractors.choice import load_extractor
from gen_unlearn.metrics.features import MeasurementProtocol
from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.pipelines.loading import served_classes
from gen_unlearn.processes import process_state
from gen_unlearn.repro import digest_json, software_versions
from gen_unlearn.runs import RunFolder
from gen_unlearn.samples import SamplePlan, SampleSet, generate_samples
from gen_unlearn.training.classifier import JudgeClassifier, JudgeFeatures, train_judge

_STATES = ("before", "after", "oracle", "random")
"""What the measures of a run end in."""


def evaluate(
    run: RunFolder,
    oracles: Sequence[RunFolder] = (),
    images: Sequence[Path] = (),
    detect: float | None = None,
) -> Scorecard:
    """Measure a run as it is now, and what a deletion changed; write the scorecard into the run.

    Samples are kept in the run, so an evaluation before a deletion is what makes the comparison with
    after possible.

    Args:
        run: the run.
        oracles: runs that were trained without what was deleted from `run`, of different training seeds.
        images: folders or tables of images from anywhere, to compare with the same held-out images.
        detect: a difference of Frechet distances to plan the number of images for.

    Raises:
        ValueError: an oracle is another run's, or of another deletion, or two have one seed.
    """
    for oracle in oracles:
        require_oracle(run, oracle)
    if len({oracle.manifest.recipe_digest for oracle in oracles}) < len(oracles):
        raise ValueError(
            f"expected oracles of different training seeds, got {len(oracles)}, some of one seed"
        )
    if (processes := process_state().num_processes) > 1:
        raise ValueError(f"a run is judged in one process so far, got {processes}")
    sets = _open_all(images, run)
    split = run.load_split()
    judge = find_judge(run, split.train)
    drawn, notes = _sample_states(run, oracles)
    evidence = Evidence(
        states=drawn.load(drawn.states),
        oracles=tuple(SampleSet.from_file(path) for path in drawn.oracles),
        oracles_again=tuple(SampleSet.from_file(path) for path in drawn.oracles_again),
        deletion=find_deletion(run, split.train),
        test=split.test,
    )
    trained_on = run.key.seal("data", run.split_core(split.train).digest)
    if run.manifest.without is None and run.manifest.data_digest != trained_on:
        notes.append("The source no longer holds the images that this run was trained on.")
    config = run.config.evaluation
    recogniser, measurer = Recogniser(judge), find_measurer(run, judge)
    leakage = measure_leakage(run, oracles, evidence, config.membership)
    names = split.test.class_names
    quality = [
        *measure_quality(evidence, measurer, config.comparison, detect),
        *measure_folders(sets, evidence, measurer, config.comparison, detect),
    ]
    card = Scorecard(
        measures=(
            *quality,
            *measure_accuracy(evidence, recogniser),
            *measure_retraining(evidence, measurer, config.comparison),
            *measure_forgetting(evidence, recogniser, config.images_per_class),
            *leakage.measures,
            *measure_copies(evidence),
            *measure_costs(run),
        ),
        protocol={
            **_protocol(run, measurer, evidence),
            "generated": {found.name: len(found) for found in sets},
        },
        accuracy_per_class={
            state: accuracy_per_class(recogniser, samples, names)
            for state, samples in evidence.states.items()
        },
        confusion={
            state: confusion(recogniser, samples, names) for state, samples in evidence.states.items()
        },
        roc=leakage.roc,
        samples={state: path.name for state, path in drawn.states.items()},
        notes=(*notes, *leakage.notes, *detection_notes(quality, detect)),
    )
    write_text(run.scorecard_path, card.to_json())
    return card


def _open_all(paths: Sequence[Path], run: RunFolder) -> list[EncodedImageSet]:
    """Open sets of images, to be converted to the shape of the run's images."""
    height, width, channels = run.manifest.image_shape
    sets = open_distinct(paths, (height, width), channels)
    for images in sets:
        require_enough(images, run.config.evaluation.comparison)
        if images.name in _STATES:
            raise ValueError(
                f"expected a set of images with another name than the states {', '.join(_STATES)}, got "
                f"{images.name}; rename it"
            )
    return sets


def find_judge(run: RunFolder, train: IndexedImages) -> JudgeClassifier:
    """Load the run's judge, training it on the training split the first time."""
    config, seed = run.config.evaluation.judge, run.config.evaluation.judge_seed
    made_from = run.key.seal("judge", digest_json([asdict(config), seed, train.digest]))
    folder = run.metrics_path / f"judge-{made_from[:12]}"
    device = process_state().device
    if not folder.exists():
        model = train_judge(train.all_images(), train.labels, len(train.class_names), config, seed, device)
        unfinished = run.metrics_path / "judge.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        unfinished.rename(folder)
    return JudgeClassifier.from_pretrained(folder, local_files_only=True).to(device).eval()


def find_measurer(run: RunFolder, judge: JudgeClassifier) -> Measurer:
    """Load what distances are measured in: the judge, or the extractor that the recipe names."""
    config = run.config.evaluation
    if config.features == "judge":
        return Measurer(JudgeFeatures(judge))
    weights = None if config.weights is None else Path(config.weights).expanduser()
    extractor = load_extractor(config.features, weights, process_state().device)
    return Measurer(extractor, run.metrics_path / "features")


def sample_plan(run: RunFolder) -> SamplePlan:
    """Return the set of samples that a run is judged by."""
    config = run.config.evaluation
    return SamplePlan(config.images_per_class, config.null_images, 0, run.config.sampling)


@dataclass(frozen=True)
class _SampleFiles:
    """The files of the samples of each state, and of each oracle with the same and with other noise."""

    states: dict[str, Path]
    oracles: tuple[Path, ...] = ()
    oracles_again: tuple[Path, ...] = ()

    def load(self, files: dict[str, Path]) -> dict[str, SampleSet]:
        return {state: SampleSet.from_file(path) for state, path in files.items()}


def _sample_states(run: RunFolder, oracles: Sequence[RunFolder]) -> tuple[_SampleFiles, list[str]]:
    """Sample every state that can still be sampled; return the files, and what could not be done.

    All samples lie in the folder of `run`, those of its oracles included.
    """
    plan = sample_plan(run)
    files: dict[str, Path] = {}
    notes: list[str] = []
    if not run.receipts():
        return _SampleFiles({"before": _sample(run, plan, run.samples_path, "sample before")}), notes
    before = plan.path(run.samples_path, run.first_state_digest())
    if before.exists():
        files["before"] = before
    else:
        notes.append("No samples were made before the deletion: run evaluate before forget to compare.")
    files["after"] = _sample(run, plan, run.samples_path, "sample after")
    if not oracles:
        notes.append("No oracle was given: what retraining would have done is not known.")
        return _SampleFiles(files), notes
    fresh_noise = replace(plan, null_images=0, first_index=plan.images_per_class)
    drawn, again = [], []
    for number, oracle in enumerate(oracles, 1):
        name = "oracle" if len(oracles) == 1 else f"oracle {number}"
        drawn.append(_sample(oracle, plan, run.samples_path, f"sample {name}"))
        again.append(_sample(oracle, fresh_noise, run.samples_path, f"sample {name} again"))
    files["oracle"] = drawn[0]
    return _SampleFiles(files, tuple(drawn), tuple(again)), notes


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


def _protocol(run: RunFolder, measurer: Measurer, evidence: Evidence) -> dict[str, object]:
    config = run.config.evaluation
    settings = {
        "comparison": asdict(config.comparison),
        "membership": asdict(config.membership),
        "sampling": asdict(run.config.sampling),
    }
    measured = MeasurementProtocol.of(measurer.extractor, evidence.test.all_images()[0])
    return {
        "state": run.state_digest(),
        **measured.as_dict(),
        "quantisation": "uint8, once, before any measure",
        "data": run.config.data.source,
        "held_out_images": len(evidence.test),
        "forgotten_classes": [evidence.test.class_names[label] for label in evidence.deletion.classes],
        "deleted_images": len(evidence.deletion.images),
        "images_per_class": config.images_per_class,
        "null_images": config.null_images,
        **json.loads(json.dumps(settings)),
        "training_seed": run.config.seed,
        "oracles": len(evidence.oracles),
        "versions": software_versions(),
        "standard_errors": "of sampling, with images as independent; training seeds are not in them",
    }
