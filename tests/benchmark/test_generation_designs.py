"""Generators as rows: a deletion is what their level says, costs what it says, and repeats do no harm."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from command_line import CONFIGS, TINY_OVERRIDES
from diffusers import DDPMScheduler

from gen_unlearn.benchmark.generation.designs import (
    GeneratorDesignEntry,
    TrainedGenerator,
    core_of,
    design_recipe,
    train_design,
)
from gen_unlearn.benchmark.generation.trained_designs import TrainedLoraEnsemble, TrainedSemiParametric
from gen_unlearn.config import RunConfig, load_config
from gen_unlearn.data import IndexedImages, load_digits_images
from gen_unlearn.exemplars import ExemplarStore
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.pipelines.loading import weights_digest
from gen_unlearn.pipelines.sampling import sample_images

PUBLIC = {"mode": "public", "fraction": 0.6}
EPOCHS = 2
LORA = {"rank": 2, "epochs": EPOCHS, "batch_size": 16, "stack": 1, "targets": ["conv1", "time_emb_proj"]}
ADAPTERS = {"count": 4, "neighbours": 2, "lora": LORA}
ROUTER = {"encoder": {"width": 4, "depth": 0}, "training": {"images": 64, "batch_size": 32}}
ENSEMBLE = {"kind": "adapter-ensemble", "adapters": ADAPTERS, "router": ROUTER}
SETTINGS: dict[str, dict[str, Any]] = {
    "SPM": {"model": {"kind": "semi-parametric"}},
    "SPM, public core": {
        "model": {"kind": "semi-parametric"},
        "core": PUBLIC,
        "sampling": {"sampler": "ddpm", "guidance_scale": 2.0},
    },
    "ensemble": {"model": ENSEMBLE, "core": PUBLIC, "sampling": {"sampler": "ddpm"}},
    "ensemble that looks": {"model": {**ENSEMBLE, "backbone": "semi-parametric"}, "core": PUBLIC},
}
BIT_EXACT = [name for name in SETTINGS if name != "SPM"]
REPEATED, TIMES = 6, 5


@cache
def _generator() -> RunConfig:
    return load_config(CONFIGS / "digits_ddpm.yaml", TINY_OVERRIDES)


@cache
def _images() -> IndexedImages:
    """200 digits, the first six of them five times."""
    digits = load_digits_images()
    order = np.random.default_rng(0).permutation(len(digits))[:200]
    return digits.select(np.concatenate([np.repeat(order[:REPEATED], TIMES), order[REPEATED:]]))


def _recipe(name: str) -> RunConfig:
    return design_recipe(_generator(), GeneratorDesignEntry(name, SETTINGS[name]))


def _request(config: RunConfig) -> ForgetSet:
    """Eight images that may be deleted, repeated ones first."""
    images = _images()
    deletable = images.ids[~core_of(config, images)]
    _, first, counts = np.unique(deletable, axis=0, return_index=True, return_counts=True)
    assert counts.max() == TIMES
    return ForgetSet(deletable[first[np.argsort(-counts, kind="stable")][:8]], "test")


def _sampled(trained: TrainedGenerator, config: RunConfig) -> np.ndarray:
    return sample_images(trained.pipeline, [0, 0, 1, 2], [0, 1, 0, 0], config.sampling)


def _held(trained: TrainedGenerator) -> np.ndarray:
    """Ids of what can be deleted still."""
    if isinstance(trained, TrainedLoraEnsemble):
        return trained.ensemble.ids
    assert isinstance(trained, TrainedSemiParametric)
    assert trained.pipeline.exemplars is not None
    return trained.pipeline.exemplars.ids


def _state_digest(trained: TrainedGenerator) -> str:
    """Digest of what deletions change: of the store, or of records and adapters."""
    if isinstance(trained, TrainedLoraEnsemble):
        return trained.ensemble.digest
    assert isinstance(trained, TrainedSemiParametric)
    assert trained.pipeline.exemplars is not None
    return trained.pipeline.exemplars.digest


@cache
def _deleted(name: str) -> tuple[TrainedGenerator, np.ndarray, np.ndarray]:
    """Train a design, sample, delete eight images, and sample again."""
    config = _recipe(name)
    forget = _request(config)
    trained = train_design(config, _images())
    held, before, weights = _held(trained), _sampled(trained, config), weights_digest(trained.pipeline)
    distinct = unique_ids(_images().ids[~core_of(config, _images())])
    assert np.array_equal(held, distinct)  # Repeats are there once.
    passed = _passes(trained, forget)
    cost = trained.delete(forget)
    assert cost.seconds > 0
    assert cost.forward_samples == cost.backward_samples == passed
    assert np.array_equal(_held(trained), distinct[~forget.mask(distinct)])
    assert weights_digest(trained.pipeline) == weights
    return trained, before, _sampled(trained, config)


def _passes(trained: TrainedGenerator, forget: ForgetSet) -> int:
    """Count the images that train what the deletion touches: epochs times those routed there that stay."""
    if not isinstance(trained, TrainedLoraEnsemble):
        return 0
    ensemble = trained.ensemble
    leaving = forget.mask(ensemble.ids)
    touched = np.unique(ensemble.routes[leaving])
    assert len(touched) > 0
    return EPOCHS * int(np.isin(ensemble.routes[~leaving], touched).sum())


@pytest.mark.parametrize("name", SETTINGS)
def test_a_deletion_reaches_what_is_sampled(name: str) -> None:
    trained, before, after = _deleted(name)
    assert before.shape == after.shape == (4, 8, 8, 1)
    assert not np.array_equal(before, after)
    assert trained.level == ("exemplar-only" if name == "SPM" else "bit-exact")
    sampler = _recipe(name).sampling.sampler
    assert isinstance(trained.pipeline.scheduler, DDPMScheduler) == (sampler == "ddpm")


@pytest.mark.parametrize("name", BIT_EXACT)
def test_a_deleted_design_is_one_that_was_built_without_the_images(name: str) -> None:
    config = _recipe(name)
    trained, _, after = _deleted(name)
    left = _images().without(_request(config))
    fresh = train_design(config, left, trained.core_ids)
    assert weights_digest(fresh.pipeline) == weights_digest(trained.pipeline)
    assert _state_digest(fresh) == _state_digest(trained)
    assert np.array_equal(_sampled(fresh, config), after)
    if isinstance(trained, TrainedLoraEnsemble):
        assert isinstance(fresh, TrainedLoraEnsemble)
        _require_equal(trained, fresh)


def _require_equal(trained: TrainedLoraEnsemble, fresh: TrainedLoraEnsemble) -> None:
    """Compare adapters bit for bit, and what the pipelines answer with."""
    served, others = trained.pipeline.adapters, fresh.pipeline.adapters
    assert np.array_equal(served.members, others.members)
    assert served.states.keys() == others.states.keys() == trained.ensemble.states.keys()
    for number, state in served.states.items():
        assert {name: array.tobytes() for name, array in state.items()} == {
            name: array.tobytes() for name, array in others.states[number].items()
        }
    stores = [model.pipeline.exemplars for model in (trained, fresh)]
    assert len({None if store is None else store.digest for store in stores}) == 1


def test_a_joint_core_deletes_exemplars_alone() -> None:
    """The store is that without the images; the weights saw them, and other weights would not have."""
    config = _recipe("SPM")
    trained, _, _ = _deleted("SPM")
    left = _images().without(_request(config))
    assert len(trained.core_ids) == 0
    assert _state_digest(trained) == ExemplarStore.from_images(left).digest
    assert weights_digest(train_design(config, left).pipeline) != weights_digest(trained.pipeline)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_cannot_be_deleted_is_refused_and_nothing_changes(name: str) -> None:
    trained, _, _ = _deleted(name)
    before, some = _state_digest(trained), _held(trained)[:1]
    with pytest.raises(ValueError, match=r"1 of 2 ids are not in .*nothing was deleted"):
        trained.delete(ForgetSet(np.concatenate([some, np.full((1, 16), 7, dtype=np.uint8)]), "test"))
    if len(trained.core_ids):
        with pytest.raises(ValueError, match=r"public core.*choose others with core_of; nothing was deleted"):
            trained.delete(ForgetSet(np.concatenate([some, trained.core_ids[:1]]), "test"))
    assert _state_digest(trained) == before


def test_a_public_core_takes_all_copies_of_an_image_or_none() -> None:
    images = _images()
    public = core_of(_recipe("ensemble"), images)
    assert 0.5 < public.mean() < 0.7
    for number in range(REPEATED):
        copies = public[number * TIMES : (number + 1) * TIMES]
        assert copies.all() or not copies.any()
    assert not core_of(_recipe("SPM"), images).any()


def test_settings_replace_the_keys_that_they_name_alone() -> None:
    generator, config = _generator(), _recipe("SPM, public core")
    model = replace(generator.model, kind="semi-parametric")
    sampling = replace(generator.sampling, sampler="ddpm", guidance_scale=2.0)
    core = replace(generator.core, mode="public", fraction=0.6)
    assert config == replace(generator, model=model, sampling=sampling, core=core)
    assert _recipe("ensemble").model.adapters.lora.epochs == EPOCHS


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "design X: model.kind: expected semi-parametric or adapter-ensemble.*got class-conditional"),
        ({"model": {"kind": "semi-parametric", "heads": 3}}, "design X: unknown key model.heads"),
        ({"model": {"kind": "adapter-ensemble"}}, "design X: .*needs core.mode public"),
        ({"training": {"images": "many"}}, "design X: training.images: .*'many'"),
        ({"task": "classification"}, "design X: task: "),
        ({"data": {"source": "digits"}}, "design X: data: expected the images of the benchmark"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        design_recipe(_generator(), GeneratorDesignEntry("X", settings))


def test_what_is_no_design_is_refused() -> None:
    with pytest.raises(ValueError, match="got class-conditional"):
        train_design(_generator(), _images())
    with pytest.raises(ValueError, match="expected a name"):
        GeneratorDesignEntry("")
