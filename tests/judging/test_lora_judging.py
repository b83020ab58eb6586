"""The judgement of adapter ensembles that generate: states in memory, attacks on adapters, copies, costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lora_runs import DELETED, DeletedRun

from gen_unlearn.adapters.encoding import encode_records
from gen_unlearn.commands.evaluate import find_deletion
from gen_unlearn.commands.undeleted import undeleted_generator
from gen_unlearn.judging.attacks import (
    ScoredImages,
    Scores,
    attack_model,
    nearest_adapters,
    pipelines_by_state,
)
from gen_unlearn.judging.costs import measure_costs
from gen_unlearn.judging.evidence import Deletion, Evidence
from gen_unlearn.judging.extraction import measure_extraction
from gen_unlearn.judging.leakage import measure_leakage
from gen_unlearn.judging.memorisation import measure_memorisation, sampling_adapters
from gen_unlearn.judging.refitting import RefittableEnsemble
from gen_unlearn.judging.wording import ADAPTERS
from gen_unlearn.metrics.protocol import MembershipConfig
from gen_unlearn.pipelines.lora_ensemble import AdapterEnsembleDDPMPipeline
from gen_unlearn.pipelines.sampling import sample_images
from gen_unlearn.repro import torch_generator
from gen_unlearn.samples import SampleSet

CONFIG = MembershipConfig(images=8)


@pytest.fixture(scope="module")
def deleted(tmp_path_factory: pytest.TempPathFactory) -> DeletedRun:
    return DeletedRun.make(tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def deletion(deleted: DeletedRun) -> Deletion:
    return find_deletion(deleted.run, deleted.run.load_split().train)


@pytest.fixture(scope="module")
def ensemble(deleted: DeletedRun, deletion: Deletion) -> RefittableEnsemble:
    found = undeleted_generator(deleted.run, deletion.images)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def images(deleted: DeletedRun, deletion: Deletion) -> ScoredImages:
    return ScoredImages.choose(deletion, deleted.run.load_split().test, 8)


@pytest.fixture(scope="module")
def scores(
    deleted: DeletedRun, deletion: Deletion, ensemble: RefittableEnsemble, images: ScoredImages
) -> dict[str, Scores]:
    states = pipelines_by_state(deleted.run, deletion.images, ensemble)
    states["oracle"] = deleted.oracle.load_pipeline()
    return {state: attack_model(pipeline, images, CONFIG, state) for state, pipeline in states.items()}


def states_of(pipeline: AdapterEnsembleDDPMPipeline) -> dict[int, dict[str, bytes]]:
    return {
        number: {name: array.tobytes() for name, array in state.items()}
        for number, state in pipeline.adapters.states.items()
    }


def samples_of(deleted: DeletedRun, count: int) -> SampleSet:
    pipeline = deleted.run.load_pipeline()
    assert isinstance(pipeline, AdapterEnsembleDDPMPipeline)
    labels = np.repeat(pipeline.served_classes, count)
    indices = np.tile(np.arange(count), len(pipeline.served_classes))
    drawn = sample_images(pipeline, labels.tolist(), indices.tolist(), deleted.run.config.sampling)
    return SampleSet(drawn, labels.astype(np.int64), indices.astype(np.int64))


def test_the_model_as_it_was_is_met_to_the_bit(deleted: DeletedRun, ensemble: RefittableEnsemble) -> None:
    assert states_of(ensemble.before) == deleted.trained
    assert states_of(ensemble.pipeline) != deleted.trained
    assert ensemble.before.adapters.members.sum() == ensemble.pipeline.adapters.members.sum() + DELETED


def test_only_adapters_that_differ_are_fit_again(ensemble: RefittableEnsemble) -> None:
    same = ensemble.with_rows(ensemble.rows)
    assert all(same.adapters.states[a] is state for a, state in ensemble.pipeline.adapters.states.items())
    hit = set(np.unique(ensemble.routes(ensemble.undeleted_rows)[deleted_rows(ensemble)]).tolist())
    kept = [a for a, state in ensemble.before.adapters.states.items() if state is same.adapters.states.get(a)]
    assert set(kept) == set(same.adapters.states) - hit


def deleted_rows(ensemble: RefittableEnsemble) -> np.ndarray:
    return ensemble.deleted.holds(ensemble.undeleted_rows.ids)


def test_the_control_lacks_as_many_others(ensemble: RefittableEnsemble) -> None:
    control = ensemble.without_others
    assert control is not None
    assert control.adapters.members.sum() == len(ensemble.rows.ids)
    assert states_of(control) != states_of(ensemble.pipeline)
    assert states_of(control) != states_of(ensemble.before)


def test_after_an_exact_deletion_scores_are_those_of_the_oracle(scores: dict[str, Scores]) -> None:
    assert set(scores) == {"before", "after", "random", "oracle"}
    for attack, found in scores["after"].items():
        np.testing.assert_array_equal(found, scores["oracle"][attack], err_msg=attack)
    for state in ("before", "random"):
        assert not np.array_equal(scores[state]["loss"], scores["after"]["loss"])


def test_an_image_is_scored_with_its_own_adapter_in_any_batch(
    ensemble: RefittableEnsemble, images: ScoredImages, scores: dict[str, Scores]
) -> None:
    few = replace(CONFIG, attack=replace(CONFIG.attack, batch_size=3))
    again = attack_model(ensemble.before, images, few, "before")
    for attack, found in again.items():
        np.testing.assert_allclose(found, scores["before"][attack], rtol=1e-3, err_msg=attack)
    one = ScoredImages(images.data.select(np.array([1])), images.held_out.select(np.array([2])))
    alone = attack_model(ensemble.before, one, CONFIG, "before")["loss"]
    expected = scores["before"]["loss"][[1, len(images.data) + 2]]
    np.testing.assert_allclose(alone, expected, rtol=1e-3)


def test_the_adapter_of_a_deleted_image_is_where_it_was_routed(ensemble: RefittableEnsemble) -> None:
    rows = ensemble.undeleted_rows.select(deleted_rows(ensemble))
    found = nearest_adapters(ensemble.before, rows.pixels)
    np.testing.assert_array_equal(found, ensemble.routes(rows)[:, :1])


def test_leakage_has_no_gap_and_speaks_of_adapters(
    deleted: DeletedRun, deletion: Deletion, ensemble: RefittableEnsemble
) -> None:
    evidence = Evidence({}, (), (), deletion, deleted.run.load_split().test, ADAPTERS)
    found = measure_leakage(deleted.run, [deleted.oracle], evidence, CONFIG, ensemble)
    by_name = {measure.name: measure for measure in found.measures}
    for attack in ("loss", "secmi", "pia", "pian", "clid"):
        assert by_name[f"membership_gap_{attack}_after"].value == 0
    texts = " ".join(measure.definition + measure.floor_definition for measure in found.measures)
    assert "exemplar" not in texts
    assert "nearest key" in by_name["membership_auc_loss_before"].definition


def test_the_adapters_of_samples_are_known_from_their_seeds(
    deleted: DeletedRun, ensemble: RefittableEnsemble
) -> None:
    samples, sampling = samples_of(deleted, 2), deleted.run.config.sampling
    found = sampling_adapters(ensemble.pipeline, samples, sampling)
    assert found.shape == (len(samples.labels), 1)
    own = redrawn(deleted, ensemble.pipeline, samples, found)
    np.testing.assert_array_equal(own, samples.images)
    others = redrawn(deleted, ensemble.pipeline, samples, np.roll(found, 1, axis=0))
    assert not np.array_equal(others, samples.images)


def redrawn(
    deleted: DeletedRun, pipeline: AdapterEnsembleDDPMPipeline, samples: SampleSet, adapters: np.ndarray
) -> np.ndarray:
    """Draw the samples again with given adapters."""
    sampling = deleted.run.config.sampling
    labels = samples.labels.tolist()
    noise = [
        torch_generator(sampling.seed, "sample", str(label), index)
        for label, index in zip(labels, samples.indices.tolist(), strict=True)
    ]
    return pipeline(
        labels,
        adapters=adapters,
        guidance_scale=sampling.guidance_scale,
        num_inference_steps=sampling.num_inference_steps,
        generator=noise,
        output_type="uint8",
        return_dict=False,
    )[0]


def test_copies_of_an_adapters_images_are_noticed(deleted: DeletedRun, ensemble: RefittableEnsemble) -> None:
    run, samples = deleted.run, samples_of(deleted, 4)
    split = run.load_split()
    core, sampling = run.split_core(split.train).core, run.config.sampling
    numbers = sampling_adapters(ensemble.pipeline, samples, sampling)[:, 0]
    routes = ensemble.routes(ensemble.rows)[:, 0]
    copied = np.stack([ensemble.rows.pixels[np.flatnonzero(routes == number)[0]] for number in numbers])
    copies = SampleSet(copied, samples.labels, samples.indices)
    of_copies = measure_memorisation(ensemble, "after", copies, core, split.test, sampling)
    of_samples = measure_memorisation(ensemble, "after", samples, core, split.test, sampling)
    assert [measure.name for measure in of_copies] == [
        "adapter_copying_after",
        "adapter_copying_of_all_after",
    ]
    assert [measure.value for measure in of_copies] == [0, 0]
    assert all(measure.value > 0.5 for measure in of_samples)
    assert {measure.floor for measure in of_samples} == {1}


def test_memorisation_of_one_adapter_alone_is_not_measured(
    deleted: DeletedRun, ensemble: RefittableEnsemble
) -> None:
    run, samples = deleted.run, samples_of(deleted, 1)
    one = SampleSet(samples.images[:1], samples.labels[:1], samples.indices[:1])
    split = run.load_split()
    core = run.split_core(split.train).core
    assert measure_memorisation(ensemble, "after", one, core, split.test, run.config.sampling) == []


def test_costs_count_visits(deleted: DeletedRun, ensemble: RefittableEnsemble) -> None:
    by_name = {measure.name: measure for measure in measure_costs(deleted.run, ensemble)}
    epochs = deleted.run.config.model.adapters.lora.epochs
    assert by_name["visits_train"].value == epochs * (len(ensemble.rows.ids) + DELETED)
    sizes = ensemble.pipeline.adapters.members.sum(axis=1)
    routes = ensemble.routes(ensemble.undeleted_rows)[deleted_rows(ensemble)]
    assert by_name["visits_delete"].value == epochs * sizes[np.unique(routes)].sum()
    assert {"visits_train", "visits_delete"}.isdisjoint(m.name for m in measure_costs(deleted.run))


def test_the_difference_of_a_deletion_is_attacked_where_adapters_answer(
    deleted: DeletedRun, ensemble: RefittableEnsemble
) -> None:
    test = deleted.run.load_split().test
    router = ensemble.pipeline.router
    assert router is not None
    unseen = encode_records(router, test.select(np.arange(200)), 1, (8, 8))
    found = measure_extraction(ensemble, unseen, 2)
    assert [measure.name for measure in found] == [f"before_after_w{w}" for w in (0, 1, 2, 3)]
    assert all(0 <= measure.value <= 1 for measure in found)
    assert f"over {DELETED} deleted images" in found[0].definition
    waiting = deaf(ensemble)
    assert measure_extraction(waiting, unseen, 2) == []


def deaf(ensemble: RefittableEnsemble) -> RefittableEnsemble:
    """Let every adapter wait that had a deleted image."""
    pipeline = ensemble.with_rows(ensemble.rows)
    for adapter in np.unique(ensemble.routes(ensemble.undeleted_rows)[deleted_rows(ensemble)]).tolist():
        pipeline.swap(adapter, None, pipeline.adapters.members[adapter])
    return replace(ensemble, pipeline=pipeline)


@pytest.mark.slow
def test_a_semi_parametric_backbone_gets_its_exemplars_back(tmp_path: Path) -> None:
    made = DeletedRun.make(tmp_path, ["model.backbone=semi-parametric", "model.adapters.lora.stack=1"])
    deletion = find_deletion(made.run, made.run.load_split().train)
    ensemble = undeleted_generator(made.run, deletion.images)
    assert ensemble is not None
    now, before = ensemble.pipeline.exemplars, ensemble.before.exemplars
    assert now is not None
    assert before is not None
    assert states_of(ensemble.before) == made.trained
    assert len(before) == len(now) + DELETED
    images = ScoredImages.choose(deletion, made.run.load_split().test, 4)
    after = attack_model(ensemble.pipeline, images, CONFIG, "after")
    for attack, found in attack_model(made.oracle.load_pipeline(), images, CONFIG, "oracle").items():
        np.testing.assert_array_equal(found, after[attack], err_msg=attack)
