"""Judge a classifier before and after deletion, beside models that were retrained without the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np

from gen_unlearn.atomic import write_text
from gen_unlearn.commands.evaluate import find_deletion
from gen_unlearn.commands.oracles import (
    first_weights,
    require_one_recipe,
    require_oracle,
    require_parametric_oracle,
)
from gen_unlearn.commands.undeleted import undeleted_classifier, undeleted_ensemble
from gen_unlearn.data import IndexedImages, Split
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.judging.costs import measure_costs
from gen_unlearn.judging.ensembles import Findings, attack_run
from gen_unlearn.judging.evidence import Deletion
from gen_unlearn.judging.prediction_gaps import gap_notes, measure_prediction_gaps
from gen_unlearn.judging.predictions import (
    STATES,
    JudgedImages,
    Predictions,
    accuracy_per_class,
    confusion,
    measure_accuracies,
    unanswered,
)
from gen_unlearn.metrics.scorecard import Scorecard
from gen_unlearn.pipelines.adapter_ensemble import AdapterEnsemblePipeline
from gen_unlearn.pipelines.classification import ClassificationPipeline, SemiParametricPipeline
from gen_unlearn.processes import process_state
from gen_unlearn.repro import among, keyed_order, software_versions
from gen_unlearn.runs import RunFolder
from gen_unlearn.unlearned_runs import origin_of


def evaluate_classifier(run: RunFolder, oracles: Sequence[RunFolder] = ()) -> Scorecard:
    """Measure a classifier as it is now, and what a deletion changed; write the scorecard into the run.

    Several processes share the classifying and the fitting of adapters, and compute the same measures; the
    main one writes.

    Args:
        run: the run.
        oracles: runs that were trained without what was deleted from `run`, of different training seeds:
            semi-parametric ones by its recipe, and parametric ones of the same data.

    Raises:
        ValueError: an oracle is another run's, or of another deletion, two have one seed, or two parametric
            ones differ in more than the seed.
    """
    retrained = _by_state(run, oracles)
    split = run.load_split()
    deletion = find_deletion(run, split.train)
    images = _judged_images(run, deletion, split)
    states = dict(_own_states(run, deletion, images))
    prediction = run.classifier_config.prediction
    for state, runs in retrained.items():
        if runs:
            states[state] = tuple(images.classified_by(oracle.load_classifier(prediction)) for oracle in runs)
    predictions = Predictions(
        images.labels, {state: states[state] for state in STATES if state in states}, run.manifest.class_names
    )
    gaps, attacks = measure_prediction_gaps(predictions), _attacks(run, split)
    card = Scorecard(
        measures=(*measure_accuracies(predictions), *gaps, *attacks.measures, *measure_costs(run)),
        protocol=_protocol(run, retrained, deletion, images),
        accuracy_per_class={state: accuracy_per_class(predictions, state) for state in predictions.states},
        confusion={state: confusion(predictions, state) for state in predictions.states},
        notes=(
            *_notes(run, retrained, predictions, deletion, split.train),
            *gap_notes(gaps),
            *attacks.notes,
        ),
    )
    process = process_state()
    if process.is_main_process:
        run.metrics_path.mkdir(exist_ok=True)
        write_text(run.scorecard_path, card.to_json())
    process.wait_for_everyone()
    return card


def classification_plan(run: RunFolder) -> dict[str, int]:
    """Return how many images of each kind `evaluate_classifier` classifies at most."""
    return {
        "deleted_images": len(run.forgotten()),
        "retained_images": run.classifier_config.evaluation.retained_images,
        "held_out_images": len(run.held_out_ids),
    }


def _by_state(run: RunFolder, oracles: Sequence[RunFolder]) -> dict[str, list[RunFolder]]:
    """Sort retrained runs into those with and without exemplars; refuse strangers."""
    sorted_runs: dict[str, list[RunFolder]] = {"oracle": [], "parametric": []}
    for oracle in oracles:
        if oracle.recipe.model.kind == "parametric":
            require_parametric_oracle(run, oracle)
            sorted_runs["parametric"].append(oracle)
        else:
            require_oracle(run, oracle)
            sorted_runs["oracle"].append(oracle)
    if len({oracle.manifest.recipe_digest for oracle in oracles}) < len(oracles):
        raise ValueError(
            f"expected oracles of different training seeds, got {len(oracles)}, some of one seed"
        )
    require_one_recipe(sorted_runs["parametric"])
    return sorted_runs


def _judged_images(run: RunFolder, deletion: Deletion, split: Split) -> JudgedImages:
    """Choose the images that every model classifies."""
    config, retained = run.classifier_config.evaluation, deletion.retained
    if run.has_exemplars:
        held = among(retained.ids, unique_ids(run.exemplar_folder().ids))
        retained = retained.select(np.flatnonzero(held))
    chosen = keyed_order(retained.ids, config.seed, "retained images")[: config.retained_images]
    return JudgedImages(
        deletion.images, retained.select(np.sort(chosen)), split.test, deletion.retained_classes
    )


def _own_states(
    run: RunFolder, deletion: Deletion, images: JudgedImages
) -> Iterator[tuple[str, tuple[dict[str, np.ndarray], ...]]]:
    """Yield what the run predicts in the states that can be had: as it is, and before its deletions."""
    pipeline = run.load_classifier()
    if not len(run.forgotten()):
        yield "before", (images.classified_by(pipeline),)
        return
    if not run.has_exemplars:
        if (origin := origin_of(run)) is not None:
            before = origin.load_classifier(run.classifier_config.prediction)
            yield "before", (images.classified_by(before),)
        yield "after", (images.classified_by(pipeline),)
        return
    if _found(deletion) == len(run.forgotten()):
        yield "before", (images.classified_by(_undeleted(run, pipeline, deletion.images)),)
    if len(run.exemplar_folder()):
        yield "after", (images.classified_by(pipeline),)


def _undeleted(
    run: RunFolder, pipeline: ClassificationPipeline, deleted: IndexedImages
) -> ClassificationPipeline:
    """Return the classifier with the deleted images put back, in memory only."""
    if isinstance(pipeline, AdapterEnsemblePipeline):
        return undeleted_ensemble(run, pipeline, deleted)
    assert isinstance(pipeline, SemiParametricPipeline), "nothing is deleted from a parametric run"
    return undeleted_classifier(run, pipeline, deleted)


def _attacks(run: RunFolder, split: Split) -> Findings:
    """Attack a copy of an adapter ensemble; other models have no adapters to attack."""
    if not run.is_ensemble:
        return Findings((), ())
    pipeline = run.load_classifier()
    assert isinstance(pipeline, AdapterEnsemblePipeline)
    return attack_run(run, pipeline.network, split)


def _found(deletion: Deletion) -> int:
    """Return how many of the deleted images the source still holds."""
    return len(unique_ids(deletion.images.ids))


def _notes(
    run: RunFolder,
    retrained: dict[str, list[RunFolder]],
    predictions: Predictions,
    deletion: Deletion,
    train: IndexedImages,
) -> Iterator[str]:
    """Yield what could not be compared, and why."""
    trained_on = run.key.seal("data", run.split_core(train).digest)
    if run.manifest.without is None and run.manifest.data_digest != trained_on:
        yield "The source no longer holds the images that this run was trained on."
    deleted = len(run.forgotten())
    if not deleted:
        return
    if (found := _found(deletion)) < deleted:
        yield (
            f"The source holds {found} of the {deleted} deleted images: predictions before the deletion "
            "cannot be had, and nothing is said about the other deleted images."
        )
    if run.is_ensemble:
        yield from _unanswered(predictions)
        if held := run.held_back(run.classifier_config.model.adapters.release).adapters:
            yield (
                f"{len(held)} adapters are held back: meanwhile predict tells classes without probabilities. "
                "Here all scores are judged, as they will be told once the adapters are released."
            )
    if "after" not in predictions.states:
        yield "No exemplar is left, so that the run predicts nothing any more."
    if not any(retrained.values()):
        yield "No oracle was given: what retraining would have done is not known."
    for state, remedy in (
        ("oracle", "train a second oracle for the floor: --oracle-seeds 2"),
        ("parametric", "train a second one of another seed for the floor, and name it with --oracle"),
    ):
        if len(retrained[state]) == 1:
            yield f"One retrained model ({state}) gives no floor for the distances to it; {remedy}."
    alike = [
        oracle for runs in retrained.values() for oracle in runs if oracle.recipe.seed == run.recipe.seed
    ]
    if alike:
        yield (
            f"{', '.join(str(oracle.path) for oracle in alike)} and this run share the training seed, and so "
            "the initial weights: their distance is smaller than that of other retrainings."
        )
    yield from _shared_start(run, retrained)
    if single := [name for name, labels in predictions.labels.items() if len(labels) == 1]:
        yield f"Distances need two images, and there is one in: {', '.join(single)}."


def _unanswered(predictions: Predictions) -> Iterator[str]:
    """Say for how many images no adapter answers: all their probabilities are equal."""
    for state in predictions.states:
        for name in predictions.labels:
            unknown = sum(int(unanswered(rows).sum()) for rows in predictions.of(state, name))
            if unknown:
                yield (
                    f"No adapter answers for {unknown} images of the set {name} ({state}): they count as "
                    "wrong, and in distances as equal probabilities of all classes."
                )


def _shared_start(run: RunFolder, retrained: dict[str, list[RunFolder]]) -> Iterator[str]:
    """Say which retrained models have in common with the run what its first weights saw."""
    started_from = first_weights(run)
    if started_from is None:
        return
    oracles = [oracle for runs in retrained.values() for oracle in runs]
    sharing = [str(oracle.path) for oracle in oracles if first_weights(oracle) == started_from]
    if sharing:
        which = "The oracles" if len(sharing) == len(oracles) else f"The oracles {', '.join(sharing)}"
        yield (
            f"{which} start from the same encoder weights as this run: what those saw is in both, and no "
            "distance between them shows it."
        )


def _protocol(
    run: RunFolder, retrained: dict[str, list[RunFolder]], deletion: Deletion, images: JudgedImages
) -> dict[str, object]:
    config, names = run.classifier_config, run.manifest.class_names
    sizes = {name: len(labels) for name, labels in images.labels.items()}
    scores = {"scores": "all of every adapter, held back or not"} if run.is_ensemble else {}
    return scores | {
        "task": config.task,
        "state": run.state_digest(),
        "data": config.data.source,
        "held_out_images": len(images.held_out),
        "forgotten_classes": [names[label] for label in deletion.classes],
        "deleted_images": len(images.forget),
        "images": sizes,
        "prediction": asdict(config.prediction),
        "evaluation": asdict(config.evaluation),
        "training_seed": config.seed,
        "oracles": len(retrained["oracle"]),
        "oracle_seeds": [oracle.recipe.seed for oracle in retrained["oracle"]],
        "parametric_oracles": len(retrained["parametric"]),
        "parametric_seeds": [oracle.recipe.seed for oracle in retrained["parametric"]],
        "versions": software_versions(),
        "standard_errors": "of the draw of images, as independent, for one model; of training seeds, on the "
        "same images, where there are several; a definition says otherwise",
    }
