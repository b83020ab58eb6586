"""Originals and retrained models of the digits benchmark against the ranges of the specification."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from gen_unlearn.benchmark.classifier_training import TrainingRecipe, logits_of, train_classifiers
from gen_unlearn.benchmark.forget_sets import ForgetCase, ForgetSetConfig, draw_forget_set
from gen_unlearn.benchmark.networks import NetworkConfig, build_network
from gen_unlearn.benchmark.splits import SplitConfig, build_splits
from gen_unlearn.data import load_digits_images
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.metrics.auc import Stratum, area_under_curve
from gen_unlearn.metrics.margins import margins
from gen_unlearn.metrics.ulira import ulira_loo
from gen_unlearn.repro import id_keys

pytestmark = pytest.mark.slow

MODELS = 32


@dataclass(frozen=True, eq=False)
class Pool:
    """The logits of one pool, float32 ``(models, n, classes)``, on each set of images."""

    forget: np.ndarray
    retain: np.ndarray
    unseen: np.ndarray


@dataclass(frozen=True, eq=False)
class World:
    """One split of the digits with its originals and retrained models."""

    case: ForgetCase
    unseen: IndexedImages
    originals: Pool
    retrained: Pool


@pytest.fixture(scope="module", params=range(3))
def world(request: pytest.FixtureRequest) -> World:
    splits = build_splits(
        load_digits_images(), SplitConfig(heldout=397, test=400, seed=request.param, wrong_labels=100)
    )
    case = draw_forget_set(ForgetSetConfig("random", count=100), splits, seed=request.param)
    seeds = [1000 * request.param + model for model in range(2 * MODELS)]
    networks = [build_network(NetworkConfig("mlp", 64), (1, 8, 8), 10, seed) for seed in seeds]
    data = [splits.train] * MODELS + [case.retain_images] * MODELS
    train_classifiers(networks, data, TrainingRecipe(epochs=60, batch_size=50, learning_rate=0.1), seeds)
    digits = load_digits_images()
    unseen = digits.select(~splits.train.holds(digits.ids))
    logits = [
        np.stack([logits_of(network, part) for network in networks])
        for part in (case.forget_images, case.retain_images, unseen)
    ]
    return World(
        case, unseen, Pool(*(part[:MODELS] for part in logits)), Pool(*(part[MODELS:] for part in logits))
    )


def accuracy(logits: np.ndarray, images: IndexedImages) -> float:
    return float(100 * (logits.argmax(axis=2) == images.labels).mean())


def population_area(world: World, pool: Pool) -> float:
    forget = margins(pool.forget, world.case.forget_images.labels)
    unseen = margins(pool.unseen, world.unseen.labels)
    return float(
        np.mean([area_under_curve([Stratum(a, b)])[0].value for a, b in zip(forget, unseen, strict=True)])
    )


def test_accuracies(world: World) -> None:
    images = (world.case.forget_images, world.case.retain_images, world.unseen)
    for pool, low, high in ((world.originals, 93, 99), (world.retrained, 72, 88)):
        forget, retain, unseen = (
            accuracy(logits, part)
            for logits, part in zip((pool.forget, pool.retain, pool.unseen), images, strict=True)
        )
        assert low < forget < high
        assert 95 < retain < 99
        assert 88 < unseen < 93


def test_attacks_on_each_image_find_the_originals_and_all_their_wrong_labels(world: World) -> None:
    labels = world.case.forget_images.labels
    originals = margins(world.originals.forget, labels)
    retrained = margins(world.retrained.forget, labels)
    assert 0.71 < ulira_loo(originals, retrained).auc.value < 0.81
    half = MODELS // 2
    assert 0.45 < ulira_loo(retrained[:half], retrained[half:]).auc.value < 0.55
    wrong = np.isin(id_keys(world.case.forget_images.ids), id_keys(world.case.splits.mislabelled))
    assert wrong.sum() >= 5
    assert ulira_loo(originals[:, wrong], retrained[:, wrong]).auc.value > 0.95


def test_population_attacks_hardly_find_anything(world: World) -> None:
    assert 0.49 < population_area(world, world.originals) < 0.60
    assert 0.38 < population_area(world, world.retrained) < 0.51


def test_originals_and_retrained_models_disagree_on_unseen_images(world: World) -> None:
    first, second = world.originals.unseen.argmax(axis=2), world.retrained.unseen.argmax(axis=2)
    assert 10 < 100 * (first != second).mean() < 13
