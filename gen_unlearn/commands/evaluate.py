"""Judge a generator before and after deletion, against the data and against its oracles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from gen_unlearn.atomic import write_text
from gen_unlearn.commands.evaluate_adapters import measure_adapters, waiting_notes
from gen_unlearn.commands.oracles import require_oracle
from gen_unlearn.commands.undeleted import undeleted_generator
from gen_unlearn.data import IndexedImages
from gen_unlearn.image_sets import EncodedImageSet, open_distinct
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.judging.classes import accuracy_per_class, confusion, measure_forgetting
from gen_unlearn.judging.copies import measure_copies, measure_embedding_copies
from gen_unlearn.judging.costs import measure_costs
from gen_unlearn.judging.distances import detection_notes, require_enough
from gen_unlearn.judging.evidence import Deletion, Evidence, Measurer, Recogniser
from gen_unlearn.judging.leakage import measure_leakage
from gen_unlearn.judging.quality import (
    measure_accuracy,
    measure_folders,
    measure_quality,
    why_unmeasured,
)
from gen_unlearn.judging.retrain import measure_retraining
from gen_unlearn.judging.states import STATES, sample_plan, sample_states
from gen_unlearn.judging.wording import ADAPTERS, WEIGHTS
from gen_unlearn.metrics.extractors.choice import load_extractor
from gen_unlearn.metrics.features import MeasurementProtocol
from gen_unlearn.metrics.scorecard import Measure, Scorecard
from gen_unlearn.processes import process_state
from gen_unlearn.repro import digest_json, software_versions
from gen_unlearn.runs import RunFolder
from gen_unlearn.training.classifier import JudgeClassifier, JudgeFeatures, train_judge


def evaluate(
    run: RunFolder,
    oracles: Sequence[RunFolder] = (),
    images: Sequence[Path] = (),
    detect: float | None = None,
) -> Scorecard:
    """Measure a run as it is now, and what a deletion changed; write the scorecard into the run.

    Samples are kept in the run, so an evaluation before a deletion is what makes the comparison with
    after possible. Several processes share sampling, features and attacks, and compute the same measures; the
    main one writes.

    Args:
        run: the run.
        oracles: runs that were trained without what was deleted from `run`, of different training seeds.
        images: folders or tables of images from anywhere, to compare with the same held-out images.
        detect: a difference of Frechet distances to plan the number of images for.

    Raises:
        ValueError: an oracle is another run's, or of another deletion, or two have one seed; or the name of a
            set of images is that of a state, or gives a measure the name of another.
    """
    _require_comparable(run, oracles)
    sets, split = _open_all(images, run), run.load_split()
    deletion = find_deletion(run, split.train)
    too_few = _why_no_distances(run, deletion, split.test, sets)
    recogniser = Recogniser(find_judge(run, split.train))
    sampled = sample_states(run, oracles)
    evidence, measurer = sampled.evidence(deletion, split.test), find_measurer(run, recogniser.model)
    ensemble = undeleted_generator(run, deletion.images) if run.is_ensemble else None
    if ensemble is not None:
        evidence = replace(evidence, words=ADAPTERS)
    if run.manifest.unlearned is not None:
        evidence = replace(evidence, words=WEIGHTS)
    distances = [] if too_few else _measure_distances(run, evidence, measurer, sets, detect)
    leakage = measure_leakage(run, oracles, evidence, run.config.evaluation.membership, ensemble)
    measures = [*distances, *_measure_classes(run, evidence, recogniser, measurer, split.train)]
    measures += [*leakage.measures, *_measure_copies(run, evidence, measurer)]
    if ensemble is not None:
        measures += measure_adapters(run, ensemble, evidence)
    complete = ensemble if _all_found(run, deletion) else None
    measures += measure_costs(run, complete)
    notes = [*sampled.notes, *waiting_notes(run), *_missing(run, deletion, split.train)]
    notes += [too_few] if too_few else []
    states, names = evidence.states.items(), split.test.class_names
    card = Scorecard(
        measures=tuple(measures),
        protocol=_protocol(run, measurer, evidence, sets),
        accuracy_per_class={state: accuracy_per_class(recogniser, drawn, names) for state, drawn in states},
        confusion={state: confusion(recogniser, drawn, names) for state, drawn in states},
        roc=leakage.roc,
        samples={state: path.name for state, path in sampled.states.items()},
        notes=(*notes, *leakage.notes, *detection_notes(distances, detect)),
    )
    process = process_state()
    if process.is_main_process:
        write_text(run.scorecard_path, card.to_json())
    process.wait_for_everyone()
    return card


def _require_comparable(run: RunFolder, oracles: Sequence[RunFolder]) -> None:
    """Refuse oracles that are not this run's, or of one seed."""
    for oracle in oracles:
        require_oracle(run, oracle)
    if len({oracle.manifest.recipe_digest for oracle in oracles}) < len(oracles):
        raise ValueError(
            f"expected oracles of different training seeds, got {len(oracles)}, some of one seed"
        )


def _open_all(paths: Sequence[Path], run: RunFolder) -> list[EncodedImageSet]:
    """Open sets of images, to be converted to the shape of the run's images."""
    height, width, channels = run.manifest.image_shape
    sets = open_distinct(paths, (height, width), channels)
    for images in sets:
        require_enough(images, run.config.evaluation.comparison)
        if images.name in STATES:
            raise ValueError(
                f"expected a set of images with another name than the states {', '.join(STATES)}, got "
                f"{images.name}; rename it"
            )
    return sets


def _why_no_distances(
    run: RunFolder, deletion: Deletion, test: IndexedImages, sets: Sequence[EncodedImageSet]
) -> str:
    """Say, before anything is sampled, why distances cannot be measured; nothing if they can."""
    config = run.config.evaluation
    generated = [config.images_per_class * len(deletion.retained_classes), *map(len, sets)]
    return why_unmeasured(deletion, test, generated, config.comparison)


def _measure_distances(
    run: RunFolder,
    evidence: Evidence,
    measurer: Measurer,
    sets: Sequence[EncodedImageSet],
    detect: float | None,
) -> list[Measure]:
    config = run.config.evaluation.comparison
    return [
        *measure_quality(evidence, measurer, config, detect),
        *measure_folders(sets, evidence, measurer, config, detect),
    ]


def _measure_classes(
    run: RunFolder,
    evidence: Evidence,
    recogniser: Recogniser,
    measurer: Measurer,
    train: IndexedImages,
) -> list[Measure]:
    """Measure retained classes, then deleted ones unless the judge cannot know one of them."""
    config = run.config.evaluation
    measures = [
        *measure_accuracy(evidence, recogniser),
        *measure_retraining(evidence, measurer, config.comparison),
    ]
    if not _unknown_classes(evidence.deletion, train):
        measures += measure_forgetting(
            evidence, recogniser, measurer, config.images_per_class, config.comparison
        )
    return measures


def _measure_copies(run: RunFolder, evidence: Evidence, measurer: Measurer) -> list[Measure]:
    features = run.config.evaluation.features
    return [*measure_copies(evidence), *measure_embedding_copies(evidence, measurer, features)]


def find_judge(run: RunFolder, train: IndexedImages) -> JudgeClassifier:
    """Load the run's judge; the first time the main process trains it on the training split."""
    config, seed = run.config.evaluation.judge, run.config.evaluation.judge_seed
    made_from = run.key.seal("judge", digest_json([asdict(config), seed, train.digest]))
    folder = run.metrics_path / f"judge-{made_from[:12]}"
    process = process_state()
    device = process.device
    if process.is_main_process and not folder.exists():
        model = train_judge(train.all_images(), train.labels, len(train.class_names), config, seed, device)
        unfinished = run.metrics_path / "judge.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        unfinished.rename(folder)
    process.wait_for_everyone()
    return JudgeClassifier.from_pretrained(folder, local_files_only=True).to(device).eval()


def find_measurer(run: RunFolder, judge: JudgeClassifier) -> Measurer:
    """Load what distances are measured in: the judge, or the extractor that the recipe names."""
    config = run.config.evaluation
    if config.features == "judge":
        return Measurer(JudgeFeatures(judge, "this run's whole training split, deleted images included"))
    weights = None if config.weights is None else Path(config.weights).expanduser()
    extractor = load_extractor(config.features, weights, process_state().device)
    return Measurer(extractor, run.features_path)


def find_deletion(run: RunFolder, train: IndexedImages) -> Deletion:
    """Find what was deleted from a run among the training images of its source.

    What an oracle was trained without counts for neither: it is no training image of it.
    """
    every = range(len(run.manifest.class_names))
    left = set(every)
    if (without := run.without()) is not None:
        train = train.select(~without.mask(train.ids))
        left = set(train.labels.tolist())
    forgotten = run.forgotten()
    if run.has_exemplars:
        left = set(run.exemplar_folder().labels.tolist())
    elif len(forgotten):
        left = set(train.labels[~forgotten.mask(train.ids)].tolist())
    retained = tuple(label for label in every if label in left)
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


def _unknown_classes(deletion: Deletion, train: IndexedImages) -> list[int]:
    """Return the deleted classes that no training image of the judge shows, so that it never names them."""
    return sorted(set(deletion.classes) - set(train.labels.tolist()))


def _all_found(run: RunFolder, deletion: Deletion) -> bool:
    """Tell whether the source still holds every deleted image."""
    return len(unique_ids(deletion.images.ids)) == len(run.forgotten())


def _missing(run: RunFolder, deletion: Deletion, train: IndexedImages) -> Iterator[str]:
    """Yield what cannot be measured because the source no longer has all images."""
    trained_on = run.key.seal("data", run.split_core(train).digest)
    if run.manifest.without is None and run.manifest.data_digest != trained_on:
        yield "The source no longer holds the images that this run was trained on."
    found, deleted = len(unique_ids(deletion.images.ids)), len(run.forgotten())
    if not found and deleted:
        yield f"The source holds none of the {deleted} deleted images: copies of them were not looked for."
    elif found < deleted:
        yield (
            f"The source holds {found} of the {deleted} deleted images: copies and membership were tested "
            "with these alone."
        )
    if unknown := _unknown_classes(deletion, train):
        yield (
            f"How often {', '.join(train.class_names[label] for label in unknown)} is generated was not "
            "measured: the source has no image of it that the judge could learn it from."
        )


def _protocol(
    run: RunFolder, measurer: Measurer, evidence: Evidence, sets: Sequence[EncodedImageSet]
) -> dict[str, object]:
    config = run.config.evaluation
    settings = {
        "comparison": asdict(config.comparison),
        "membership": asdict(config.membership),
        "sampling": asdict(run.config.sampling),
    }
    measured = MeasurementProtocol.of(measurer.extractor, next(iter(evidence.states.values())).images[0])
    return {
        "state": run.state_digest(),
        **measured.as_dict(),
        "quantisation": "uint8, once, before any measure",
        "data": run.config.data.source,
        "held_out_images": len(evidence.test),
        "reference": {"images": len(evidence.held_out), "digest": evidence.held_out.digest},
        "forgotten_classes": [evidence.test.class_names[label] for label in evidence.deletion.classes],
        "deleted_images": len(evidence.deletion.images),
        "images_per_class": config.images_per_class,
        "null_images": sample_plan(run).null_images,
        "null_images_drawn": evidence.words.null,
        **json.loads(json.dumps(settings)),
        "training_seed": run.config.seed,
        "oracles": len(evidence.oracles),
        "versions": software_versions(),
        "standard_errors": "of sampling, with images as independent (for distances, within their classes) "
        "and without the noise of training seeds, unless a definition says otherwise",
        "generated": {images.name: len(images) for images in sets},
    }
