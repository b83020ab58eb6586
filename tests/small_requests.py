"""Tiny unlearning requests and classifiers, deterministic, for the tests of all unlearning methods."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from gen_unlearn.benchmark.networks import NetworkConfig, build_network
from gen_unlearn.data import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.method import UnlearningMethod
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import image_ids

CLASSES, SIDE = 3, 4


def small_images(count: int, seed: int) -> IndexedImages:
    """Noisy images of three patterns, 4 x 4 grey pixels, the classes in turn."""
    patterns = np.random.default_rng(1).integers(40, 216, (CLASSES, SIDE, SIDE, 1))
    labels = np.arange(count, dtype=np.int64) % CLASSES
    noise = np.random.default_rng(seed).normal(0, 50, (count, SIDE, SIDE, 1))
    images = (patterns[labels] + noise).clip(0, 255).astype(np.uint8)
    names = tuple(f"small/{seed}/{number}" for number in range(count))
    return IndexedImages(images, labels, image_ids(images), ("a", "b", "c"), names)


def random_request(forget: int = 12, retain: int = 48) -> UnlearnData:
    """Images of all classes to forget."""
    images = small_images(forget + retain, seed=2)
    return UnlearnData(
        images.select(np.arange(forget)),
        images.select(np.arange(forget, len(images))),
        small_images(30, seed=3),
    )


def class_request() -> UnlearnData:
    """All images of the first class to forget; it is held out, too."""
    images = small_images(60, seed=2)
    return UnlearnData(
        images.select(images.labels == 0), images.select(images.labels != 0), small_images(30, seed=3)
    )


def everything(data: UnlearnData) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of all training images."""
    images = np.concatenate([data.forget.images[:], data.retain.images[:]])  # type: ignore[index]
    labels = np.concatenate([data.forget.labels, data.retain.labels])
    return to_model_input(images), torch.from_numpy(labels)


def trained(network: nn.Module, data: UnlearnData, steps: int = 60) -> nn.Module:
    """Fit a network to all training images of a request by full-batch steps."""
    inputs, labels = everything(data)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    network.zero_grad()
    return network.eval()


def small_mlp(seed: int = 0) -> nn.Module:
    """16 pixels, 16 hidden units, three classes, fresh weights."""
    return build_network(NetworkConfig(kind="mlp", width=16), (1, SIDE, SIDE), CLASSES, seed)


def small_group_norm_cnn(seed: int = 0) -> nn.Module:
    """Two convolutions with group normalisation, fresh weights."""
    return build_network(NetworkConfig(kind="cnn", width=4, depth=1), (1, SIDE, SIDE), CLASSES, seed)


def small_batch_norm_cnn(seed: int = 0) -> nn.Module:
    """Two convolutions with batch normalisation, fresh weights; the children are its blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
            nn.Flatten(),
            nn.Linear(24, CLASSES),
        )


def with_settings(method: UnlearningMethod, **settings: object) -> UnlearningMethod:
    """Return a method with some settings changed."""
    return replace(method, **settings)  # type: ignore[type-var]


def apply(method: UnlearningMethod, model: nn.Module, data: UnlearnData, seed: int = 0) -> nn.Module:
    """Call a method as it is, without the checks of `unlearn`: it may return the original."""
    return method(
        model, data.only(method.needs), accelerator=Accelerator(cpu=True), seed=seed, budget=Budget()
    )


def flat(model: nn.Module) -> torch.Tensor:
    """All weights, one after another, float64."""
    return torch.cat([parameter.detach().double().reshape(-1) for parameter in model.parameters()])


def same_state(first: nn.Module, second: nn.Module) -> bool:
    """Whether two models are equal, to the bit, buffers included."""
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
