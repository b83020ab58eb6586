"""Pools of small perceptrons on the digits: originals, retrained and unlearned ones, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from accelerate import Accelerator
from torch import nn

from gen_unlearn.benchmark.classifier_training import TrainingRecipe, logits_of, train_classifiers
from gen_unlearn.benchmark.forget_sets import ForgetCase, ForgetSetConfig, draw_forget_set
from gen_unlearn.benchmark.networks import NetworkConfig, build_network
from gen_unlearn.benchmark.splits import SplitConfig, build_splits
from gen_unlearn.data import IndexedImages, load_digits_images
from gen_unlearn.methods.method import UnlearningMethod, unlearn
from gen_unlearn.metrics.margins import margins
from gen_unlearn.metrics.output_distances import probabilities
from gen_unlearn.repro import id_keys

RECIPE = TrainingRecipe(epochs=60, batch_size=50, learning_rate=0.1)
RANDOM = ForgetSetConfig("random", count=100)
SETS = ("forget", "retain", "unseen")
_SPLIT = SplitConfig(heldout=397, test=400, wrong_labels=100)
_SEEDS_OF_A_SPLIT = 1000


@dataclass(frozen=True, eq=False)
class Pool:
    """The logits of several networks, float32 ``(models, n, classes)``, on each set of images."""

    forget: np.ndarray
    retain: np.ndarray
    unseen: np.ndarray

    def __len__(self) -> int:
        return len(self.forget)

    def take(self, models: np.ndarray | slice) -> Pool:
        """Return some of the networks."""
        return Pool(*(getattr(self, part.name)[models] for part in fields(self)))

    def probabilities(self, name: str) -> list[np.ndarray]:
        """Return the probabilities of each network on a set, float64 ``(n, classes)``."""
        return [probabilities(logits) for logits in getattr(self, name)]


@dataclass(frozen=True, eq=False)
class World:
    """A split of the digits, a forget set, and the networks that were trained with and without it.

    Attributes:
        case: 1000 training images, 100 of them with a wrong label, and what is forgotten.
        unseen: the 797 other images; here the held-out and the test images are one set.
        networks: the originals.
        originals: their logits.
        retrained: those of networks with other seeds, trained on what is retained.
        seeds: of the originals.
    """

    case: ForgetCase
    unseen: IndexedImages
    networks: Sequence[nn.Module]
    originals: Pool
    retrained: Pool
    seeds: Sequence[int]

    @property
    def images(self) -> dict[str, IndexedImages]:
        """The images of each set."""
        return dict(zip(SETS, (self.case.forget_images, self.case.retain_images, self.unseen), strict=True))

    @property
    def mislabelled(self) -> np.ndarray:
        """Which images to forget have a wrong label, bool ``(n,)``."""
        return np.isin(id_keys(self.case.forget_images.ids), id_keys(self.case.splits.mislabelled))

    def margins(self, pool: Pool, name: str) -> np.ndarray:
        """Return the margins of a set, float64 ``(models, n)``."""
        return margins(getattr(pool, name), self.images[name].labels)

    def logits(self, networks: Sequence[nn.Module]) -> Pool:
        """Return what networks say about all sets."""
        return _logits(networks, list(self.images.values()))

    def unlearned(self, method: UnlearningMethod, accelerator: Accelerator) -> Pool:
        """Apply a method to every original, each with the seed of its training."""
        data = self.case.unlearn_data()
        return self.logits(
            [
                unlearn(method, network, data, accelerator=accelerator, seed=seed).model
                for network, seed in zip(self.networks, self.seeds, strict=True)
            ]
        )


def random_world(split_seed: int, models: int, recipe: TrainingRecipe = RECIPE) -> World:
    """Train originals and retrained networks of a random tenth to forget.

    Args:
        split_seed: of the split, of the wrong labels, of what is forgotten and of all training.
        models: originals, and as many retrained networks.
        recipe: how all are trained.
    """
    digits = load_digits_images()
    splits = build_splits(digits, SplitConfig(_SPLIT.heldout, _SPLIT.test, split_seed, _SPLIT.wrong_labels))
    case = draw_forget_set(RANDOM, splits, seed=split_seed)
    seeds = [_SEEDS_OF_A_SPLIT * split_seed + model for model in range(2 * models)]
    networks = _trained([splits.train] * models + [case.retain_images] * models, seeds, recipe)
    unseen = digits.select(~splits.train.holds(digits.ids))
    pool = _logits(networks, [case.forget_images, case.retain_images, unseen])
    first, second = pool.take(slice(models)), pool.take(slice(models, None))
    return World(case, unseen, networks[:models], first, second, seeds[:models])


def class_world(world: World, name: str, recipe: TrainingRecipe = RECIPE) -> World:
    """Return a world with the same originals in which a class is forgotten, wrong labels included.

    Args:
        world: whose split and originals to take.
        name: name of the class.
        recipe: how networks without the class are trained.
    """
    case = draw_forget_set(ForgetSetConfig("class", classes=(name,)), world.case.splits, seed=0)
    seeds = [seed + len(world.seeds) for seed in world.seeds]
    networks = _trained([case.retain_images] * len(seeds), seeds, recipe)
    parts = [case.forget_images, case.retain_images, world.unseen]
    originals, retrained = _logits(world.networks, parts), _logits(networks, parts)
    return World(case, world.unseen, world.networks, originals, retrained, world.seeds)


def _trained(data: Sequence[IndexedImages], seeds: Sequence[int], recipe: TrainingRecipe) -> list[nn.Module]:
    """Train one perceptron on each data, stacked where they have equally many images."""
    classes, shape, config = len(data[0].class_names), data[0].image_shape, NetworkConfig("mlp", 64)
    networks: list[nn.Module] = [build_network(config, shape, classes, seed) for seed in seeds]
    train_classifiers(networks, data, recipe, seeds)
    return networks


def _logits(networks: Sequence[nn.Module], parts: Sequence[IndexedImages]) -> Pool:
    return Pool(*(np.stack([logits_of(network, part) for network in networks]) for part in parts))
