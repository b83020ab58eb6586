"""Predictions of an adapter ensemble: what its adapters say, and nothing where none answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gen_unlearn.adapters.adapter_folder import save_adapters
from gen_unlearn.adapters.answering import Answers
from gen_unlearn.adapters.encoding import block_codes, encode_records, set_public_statistics
from gen_unlearn.adapters.ensemble import AdapterEnsemble
from gen_unlearn.adapters.family import AdapterFamily
from gen_unlearn.adapters.recipe import EnsembleRecipe
from gen_unlearn.adapters.records import Records
from gen_unlearn.adapters.release import ReleaseConfig
from gen_unlearn.adapters.ridge import RidgeHeads
from gen_unlearn.adapters.sgd import SgdHeads
from gen_unlearn.data import Split
from gen_unlearn.forget import ForgetSet
from gen_unlearn.models.backbone import AdapterBackbone
from gen_unlearn.models.encoder_config import EncoderConfig
from gen_unlearn.models.encoders import encoder_architecture
from gen_unlearn.pipelines.adapter_ensemble import AdapterEnsemblePipeline, ServedFiles, as_probabilities
from gen_unlearn.pipelines.prediction import PredictionConfig
from gen_unlearn.pixels import to_model_input

ADAPTERS, NEIGHBOURS, PUBLIC = 12, 3, 300
FAMILIES: dict[str, AdapterFamily] = {
    "ridge": RidgeHeads(penalty=30.0),
    "linear": SgdHeads(epochs=2),
    "deep": SgdHeads(hidden=4, epochs=2),
}


@pytest.fixture(scope="module")
def backbone(digits_split: Split) -> AdapterBackbone:
    torch.manual_seed(0)
    made = AdapterBackbone(encoder_architecture(EncoderConfig(width=8, depth=0), (1, 8, 8)), ADAPTERS)
    set_public_statistics(made, digits_split.train.select(np.arange(PUBLIC)), seed=0)
    return made


@pytest.fixture(scope="module")
def records(backbone: AdapterBackbone, digits_split: Split) -> Records:
    deletable = digits_split.train.select(np.arange(PUBLIC, PUBLIC + 250))
    rows = encode_records(backbone, deletable, NEIGHBOURS, (8, 8))
    return Records.of_rows(rows, backbone.encoder.out_dim)[0]


def fitted(backbone: AdapterBackbone, records: Records, kind: str) -> AdapterEnsemble:
    names = tuple("0123456789")
    recipe = EnsembleRecipe(backbone.public_keys(), FAMILIES[kind], NEIGHBOURS, names, 0)
    return AdapterEnsemble.fit(recipe, records)


def served(backbone: AdapterBackbone, ensemble: AdapterEnsemble, folder: Path) -> AdapterEnsemblePipeline:
    """Return a pipeline that reads the adapters of an ensemble from a folder."""
    store(ensemble, folder)
    files = ServedFiles(folder, folder.parent / "held_back.json", ReleaseConfig(5))
    pipeline = AdapterEnsemblePipeline(backbone, ensemble.recipe, {}, PredictionConfig(batch_size=70), files)
    pipeline.reload()
    return pipeline


def store(ensemble: AdapterEnsemble, folder: Path) -> None:
    sizes = {adapter: len(rows) for adapter, rows in ensemble.members.items()}
    save_adapters(ensemble.states, sizes, folder)


@pytest.fixture(scope="module")
def images(digits_split: Split) -> np.ndarray:
    return digits_split.test.all_images()[:150]


@pytest.mark.parametrize("kind", FAMILIES)
def test_says_what_the_ensemble_says(
    backbone: AdapterBackbone, records: Records, images: np.ndarray, kind: str, tmp_path: Path
) -> None:
    ensemble = fitted(backbone, records, kind)
    found = served(backbone, ensemble, tmp_path / "adapters").classified(images)
    parts = [block_codes(backbone, images[start : start + 64]) for start in range(0, len(images), 64)]
    said = ensemble.scores(np.concatenate(parts))
    assert np.array_equal(found.answering, said.answering)
    assert np.array_equal(found.probabilities.argmax(axis=1), said.scores.argmax(axis=1))
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=0, atol=1e-12)
    assert found.probabilities.min() >= 0
    if kind != "ridge":
        np.testing.assert_allclose(found.probabilities, said.scores, rtol=0, atol=1e-6)


def test_companions_and_batches_do_not_matter(
    backbone: AdapterBackbone, records: Records, images: np.ndarray, tmp_path: Path
) -> None:
    pipeline = served(backbone, fitted(backbone, records, "ridge"), tmp_path / "adapters")
    whole = pipeline.probabilities(images)
    pipeline.prediction = PredictionConfig(batch_size=1)
    np.testing.assert_allclose(pipeline.probabilities(images[:9]), whole[:9], rtol=0, atol=1e-12)
    assert pipeline.probabilities(images[:0]).shape == (0, 10)
    logs = pipeline.log_probabilities(to_model_input(images[:64]))
    np.testing.assert_allclose(logs.exp().numpy(), whole[:64], rtol=0, atol=1e-2)


def test_a_reload_answers_without_what_was_deleted(
    backbone: AdapterBackbone, records: Records, images: np.ndarray, tmp_path: Path
) -> None:
    ensemble = fitted(backbone, records, "ridge")
    pipeline = served(backbone, ensemble, tmp_path / "adapters")
    before = pipeline.probabilities(images)
    assert (before[:, 3] > 0).any()
    ensemble.delete(ForgetSet(records.ids[records.labels == 3], "test"))
    store(ensemble, tmp_path / "adapters")
    assert np.array_equal(pipeline.probabilities(images), before)
    pipeline.reload()
    never = fitted(backbone, records.select(records.labels != 3), "ridge")
    fresh = AdapterEnsemblePipeline(backbone, never.recipe, never.states, PredictionConfig(batch_size=70))
    assert np.array_equal(pipeline.probabilities(images), fresh.probabilities(images))
    assert (pipeline.probabilities(images).argmax(axis=1) != 3).all()


def test_nothing_is_said_where_no_adapter_answers(
    backbone: AdapterBackbone, records: Records, images: np.ndarray, tmp_path: Path
) -> None:
    ensemble = fitted(backbone, records, "ridge")
    pipeline = served(backbone, ensemble, tmp_path / "adapters")
    before = pipeline.classified(images)
    one = records.ids[:1]
    touched = ensemble.touched(ForgetSet(one, "test"))
    ensemble.quarantine(ForgetSet(one, "test"))
    pipeline = pipeline.with_adapters({a: s for a, s in ensemble.states.items() if a not in ensemble.waiting})
    masked = pipeline.classified(images)
    assert len(touched) == NEIGHBOURS
    assert (masked.answering <= before.answering).all()
    silent = masked.answering == 0
    assert silent.any()
    assert not silent.all()
    assert (masked.probabilities[silent] == 0).all()
    np.testing.assert_allclose(masked.probabilities[~silent].sum(axis=1), 1)
    logs = pipeline.log_probabilities(to_model_input(images))
    assert (logs[torch.from_numpy(silent)] == -torch.inf).all()


def test_while_an_adapter_is_held_back_all_images_are_told_their_class_alone(
    backbone: AdapterBackbone, records: Records, images: np.ndarray
) -> None:
    ensemble = fitted(backbone, records, "ridge")
    pipeline = AdapterEnsemblePipeline(backbone, ensemble.recipe, ensemble.states, PredictionConfig())
    open_rows = pipeline.probabilities(images)
    assert not pipeline.label_only
    pipeline.held_back = frozenset({5})
    assert pipeline.label_only
    found = pipeline.probabilities(images)
    assert np.isin(found, (0, 1)).all()
    assert np.array_equal(found.argmax(axis=1), open_rows.argmax(axis=1))
    assert np.array_equal(pipeline.with_all_scores().probabilities(images), open_rows)


def test_only_what_was_loaded_is_reloaded(backbone: AdapterBackbone, records: Records) -> None:
    ensemble = fitted(backbone, records, "ridge")
    pipeline = AdapterEnsemblePipeline(backbone, ensemble.recipe, ensemble.states, PredictionConfig())
    with pytest.raises(ValueError, match="loaded from a run"):
        pipeline.reload()


def test_scores_become_probabilities() -> None:
    scores = np.array([[1.2, -0.2, 0.4], [-3.0, -1.0, -2.0], [0.2, 0.5, 0.3], [0, 0, 0], [0, 0, 0]])
    found = as_probabilities(Answers(scores, np.array([2, 1, 3, 1, 0])))
    expected = [[0.75, 0, 0.25], [0, 2 / 3, 1 / 3], [0.2, 0.5, 0.3], [1 / 3] * 3, [0, 0, 0]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
