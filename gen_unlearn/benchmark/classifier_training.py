"""Train the classifiers of the benchmark: originals and retrained ones, many small ones at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen_unlearn.benchmark.image_feed import Augment, ImageFeed
from gen_unlearn.benchmark.networks import MlpClassifier
from gen_unlearn.benchmark.stacked_networks import StackedNetworks
from gen_unlearn.data import IndexedImages
from gen_unlearn.pixels import to_model_input

Stacking = Literal["auto", "never"]
"""``"auto"`` trains perceptrons with equally many images as one stack; ``"never"``, each alone."""


@dataclass(frozen=True)
class TrainingRecipe:
    """How a classifier is trained: SGD on the mean cross-entropy of each batch.

    Attributes:
        epochs: passes over the data, from 1.
        batch_size: images per step, from 1; the last batch of an epoch may be smaller and is never dropped.
        learning_rate: of the first epoch, above 0.
        momentum: 0 for plain SGD, below 1.
        weight_decay: added to the gradient of every parameter, times its value.
        milestones: epochs, counted from 0, before which the learning rate is multiplied by `gamma`.
        gamma: see `milestones`; above 0.
        augment: ``"crop-flip"`` pads images by `padding` black pixels, crops them at random to their size
            and mirrors half of them; ``"none"`` leaves them as they are.
        padding: see `augment`; from 0.
        momentum_kind: ``"heavy-ball"`` (Polyak) or ``"nesterov"``, which needs a momentum.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    augment: Augment = "none"
    padding: int = 4
    momentum_kind: Literal["heavy-ball", "nesterov"] = "heavy-ball"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(
                f"expected epochs and batch_size of at least 1, got {self.epochs} and {self.batch_size}"
            )
        if not self.learning_rate > 0 or not self.gamma > 0:
            raise ValueError(
                f"expected learning_rate and gamma above 0, got {self.learning_rate} and {self.gamma}"
            )
        if not 0 <= self.momentum < 1 or not self.weight_decay >= 0 or self.padding < 0:
            raise ValueError(
                f"expected momentum from 0 to below 1, weight_decay and padding from 0, "
                f"got {self.momentum}, {self.weight_decay} and {self.padding}"
            )
        if self.augment not in ("none", "crop-flip") or self.momentum_kind not in ("heavy-ball", "nesterov"):
            raise ValueError(
                f"expected augment none or crop-flip and momentum_kind heavy-ball or nesterov, "
                f"got {self.augment!r} and {self.momentum_kind!r}"
            )
        if self.momentum_kind == "nesterov" and self.momentum == 0:
            raise ValueError("expected a momentum above 0 for nesterov, got 0; use heavy-ball")

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        return self.learning_rate * self.gamma ** sum(milestone <= epoch for milestone in self.milestones)

    def optimizer(self, parameters: list[Tensor]) -> torch.optim.SGD:
        """Return the optimiser of these parameters, at the learning rate of the first epoch."""
        return torch.optim.SGD(
            parameters,
            lr=self.rate(0),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum_kind == "nesterov",
        )

    def batches(self, feed: ImageFeed, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images and labels of each step of an epoch, counted from 0."""
        return feed.epoch(self.batch_size, seed, epoch, self.augment, self.padding)

    def sample_passes(self, images: int) -> int:
        """Return how many images pass the network forward and backward in a training on `images` images."""
        return self.epochs * images


def train_classifiers(
    networks: Sequence[nn.Module],
    data: Sequence[IndexedImages],
    recipe: TrainingRecipe,
    seeds: Sequence[int],
    stacking: Stacking = "auto",
) -> None:
    """Train several networks in place, each on its own data, and leave them in evaluation mode.

    The order of the images in an epoch is a hash of the seed, the epoch and their ids. Perceptrons of one
    shape with equally many images are trained together as stacked weights; what they become differs from
    training alone by rounding only. The network's device is where it is trained.

    Args:
        networks: distinct classifiers of images in [-1, 1], such as `build_network` makes.
        data: what each is trained on; the same object may appear several times.
        recipe: how all are trained.
        seeds: of each training's order and augmentation.
        stacking: see `Stacking`.

    Raises:
        ValueError: not as many networks, data and seeds; a network twice; no images; or a loss that is not
            finite.
    """
    if not len(networks) == len(data) == len(seeds) or len({id(network) for network in networks}) < len(data):
        raise ValueError(
            f"expected as many distinct networks as data and seeds, "
            f"got {len(networks)}, {len(data)} and {len(seeds)}"
        )
    if empty := [place for place, images in enumerate(data) if not len(images)]:
        raise ValueError(f"expected images to train on, got none for the networks {empty}")
    groups: dict[object, list[int]] = defaultdict(list)
    for place, network in enumerate(networks):
        groups[_stack_key(network, data[place], place, stacking)].append(place)
    for places in groups.values():
        if len(places) > 1:
            _train_stack(
                [networks[place] for place in places],
                [data[place] for place in places],
                recipe,
                [seeds[place] for place in places],
            )
        else:
            _train_one(networks[places[0]], data[places[0]], recipe, seeds[places[0]])


def logits_of(network: nn.Module, images: IndexedImages, batch_size: int = 512) -> np.ndarray:
    """Return the logits of every image, in evaluation mode, as float32 ``(n, classes)``.

    The network's training flags are left as they were.

    Raises:
        ValueError: no images, or logits that are not finite.
    """
    if not len(images):
        raise ValueError("expected images to classify, got none")
    training = {module: module.training for module in network.modules()}
    device = next(network.parameters()).device
    try:
        network.eval()
        with torch.no_grad():
            parts = [
                network(to_model_input(images.images[rows]).to(device)).float().cpu()
                for rows in np.array_split(np.arange(len(images)), -(-len(images) // batch_size))
            ]
    finally:
        for module, flag in training.items():
            module.training = flag
    logits = torch.cat(parts).numpy()
    if not np.isfinite(logits).all():
        raise ValueError("expected finite logits, got NaN or infinity; lower the learning rate")
    return logits


def _stack_key(network: nn.Module, data: IndexedImages, place: int, stacking: Stacking) -> object:
    """Return what networks that are trained together have in common."""
    if stacking == "never" or not isinstance(network, MlpClassifier):
        return place
    shapes = tuple(parameter.shape for parameter in network.parameters())
    return network.config, shapes, next(network.parameters()).device, data.image_shape, len(data)


def _train_one(network: nn.Module, data: IndexedImages, recipe: TrainingRecipe, seed: int) -> None:
    """Train one network in place."""
    parameters = list(network.parameters())
    optimizer = recipe.optimizer(list(parameters))
    feed = ImageFeed(data, parameters[0].device)
    network.train()
    for epoch in range(recipe.epochs):
        optimizer.param_groups[0]["lr"] = recipe.rate(epoch)
        losses = []
        for images, labels in recipe.batches(feed, seed, epoch):
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        _require_finite(torch.stack(losses), epoch)
    network.eval()


def _train_stack(
    networks: list[nn.Module], data: list[IndexedImages], recipe: TrainingRecipe, seeds: list[int]
) -> None:
    """Train perceptrons of one shape, with equally many images each, as stacked weights."""
    stack = StackedNetworks(networks)
    feeds = {id(images): ImageFeed(images, stack.device) for images in data}
    optimizer = recipe.optimizer(stack.parameters)
    for epoch in range(recipe.epochs):
        optimizer.param_groups[0]["lr"] = recipe.rate(epoch)
        losses = []
        streams = [
            recipe.batches(feeds[id(images)], seed, epoch) for images, seed in zip(data, seeds, strict=True)
        ]
        for batches in zip(*streams, strict=True):
            images, labels = (torch.stack(parts) for parts in zip(*batches, strict=True))
            loss = stack.cross_entropy(images, labels)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            losses.append(loss.detach())
        _require_finite(torch.stack(losses), epoch)
    stack.write_back()
    for network in networks:
        network.eval()


def _require_finite(losses: Tensor, epoch: int) -> None:
    """Raise a ValueError if a loss of this epoch is not finite."""
    if not bool(torch.isfinite(losses).all()):
        raise ValueError(f"the loss was not finite in epoch {epoch}; lower the learning rate")
