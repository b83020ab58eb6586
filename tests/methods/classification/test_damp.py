"""DAMP: operators become blind to what is particular to a forgotten class, and to nothing else."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from small_requests import random_request, small_group_norm_cnn, trained
from torch import nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.damp import (
    Damp,
    damp,
    damped_directions,
    operator_inputs,
    separability,
)
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.pixels import to_model_input
from gen_unlearn.repro import image_ids


def _request() -> UnlearnData:
    """Images of four classes, each a pattern with noise; the first class is to be forgotten."""
    draws = np.random.default_rng(0)
    patterns = draws.integers(40, 216, (4, 6, 6, 2))
    labels = np.arange(80, dtype=np.int64) % 4
    images = (patterns[labels] + draws.integers(-30, 31, (80, 6, 6, 2))).clip(0, 255).astype(np.uint8)
    data = IndexedImages(images, labels, image_ids(images), tuple("abcd"), tuple(map(str, range(80))))
    return UnlearnData(data.select(labels == 0), data.select(labels != 0), data.select(labels > 3))


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 12, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 4),
    ).eval()


def test_directions_are_what_lies_outside_of_the_retained_span() -> None:
    """By hand in three dimensions, and orthonormal for two classes."""
    forget, retain = (
        np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 3.0]]),
        np.array([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]]),
    )
    basis = damped_directions(forget, np.array([5, 5]), retain, np.array([0, 0]))
    np.testing.assert_allclose(np.abs(basis[:, 0]), np.array([0, 2, 3]) / np.sqrt(13), atol=1e-12)
    both = damped_directions(forget * [[1, 1, 1], [1, 1, 0]], np.array([5, 6]), retain, np.array([0, 0]))
    np.testing.assert_allclose(both.T @ both, np.eye(2), atol=1e-12)
    assert damped_directions(forget, np.array([5, 5]), np.eye(3), np.arange(3)).shape == (3, 0)


@pytest.mark.parametrize("operator", [nn.Linear(6, 5), nn.Conv2d(6, 5, 3, padding=1)], ids=["linear", "conv"])
def test_full_strength_makes_an_operator_blind(operator: nn.Linear | nn.Conv2d) -> None:
    """A damped direction has no effect, an orthogonal one keeps its own; the bias stays."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 3)))
    damped, other = basis[:, :2], torch.from_numpy(basis[:, 2]).float()
    changed, start = (
        copy.deepcopy(operator),
        torch.randn(1, 6, *(() if isinstance(operator, nn.Linear) else (4, 4))),
    )
    damp(changed, damped, 1.0)
    shape = (1, 6, *[1] * (start.ndim - 2))
    removed = torch.from_numpy(damped @ [2.0, -1.0]).float().reshape(shape)
    torch.testing.assert_close(changed(start + removed), changed(start), atol=1e-5, rtol=0)
    effect = operator(start + other.reshape(shape)) - operator(start)
    torch.testing.assert_close(
        changed(start + other.reshape(shape)) - changed(start), effect, atol=1e-5, rtol=0
    )
    assert torch.equal(changed.bias, operator.bias)
    halved = copy.deepcopy(operator)
    damp(halved, damped, 0.5)
    torch.testing.assert_close(halved.weight, (operator.weight + changed.weight) / 2)


def test_every_layer_keeps_its_answer_to_retained_means_and_loses_the_forgotten_one() -> None:
    """Ramp 0 and separable classes: the head is blind to what is particular to the forgotten class."""
    data, network, accelerator = _request(), _network(), Accelerator(cpu=True)
    found = unlearn(Damp(ramp=0.0), network, data, accelerator=accelerator, seed=0).model
    inputs = {
        part: operator_inputs(network, images, 64, accelerator, Budget())
        for part, images in (("forget", data.forget), ("retain", data.retain))
    }
    head, damped = network[6], found[6]
    assert separability(inputs["forget"]["6"], inputs["retain"]["6"]) == 1.0
    for label in (1, 2, 3):
        mean = torch.from_numpy(inputs["retain"]["6"][data.retain.labels == label].mean(axis=0)).float()
        torch.testing.assert_close(damped(mean), head(mean), atol=1e-4, rtol=0)
    basis = damped_directions(
        inputs["forget"]["6"], data.forget.labels, inputs["retain"]["6"], data.retain.labels
    )
    assert (damped.weight @ torch.from_numpy(basis).float()).abs().max() < 1e-5
    assert (head.weight @ torch.from_numpy(basis).float()).abs().max() > 1e-2
    for name, value in network.named_parameters():
        same = torch.equal(value, dict(found.named_parameters())[name])
        # 2 channels are spanned by retained means, a grouped convolution cannot be projected.
        assert same == (name.endswith("bias") or name in ("0.weight", "2.weight")), name


def test_the_forgotten_class_loses_and_no_seed_matters() -> None:
    """Logits of its own class fall for images to forget; two seeds give the same bits, at one look each."""
    data, network = _request(), _network()
    with torch.no_grad():  # A head that knows the classes: nearest mean.
        features = network[:6](to_model_input(np.concatenate([data.forget.images, data.retain.images])))
        labels = torch.from_numpy(np.concatenate([data.forget.labels, data.retain.labels]))
        means = torch.stack([features[labels == label].mean(dim=0) for label in range(4)])
        network[6].weight.copy_(means)
        network[6].bias.copy_(-(means**2).sum(dim=1) / 2)
    done = [unlearn(Damp(), network, data, accelerator=Accelerator(cpu=True), seed=seed) for seed in (0, 1)]
    inputs = to_model_input(data.forget.images)
    assert (network(inputs).argmax(dim=1) == 0).all()
    assert (done[0].model(inputs).argmax(dim=1) == 0).float().mean() < 0.5
    retained = to_model_input(data.retain.images)
    right = done[0].model(retained).argmax(dim=1) == torch.from_numpy(data.retain.labels)
    assert right.float().mean() > 0.9
    for one, two in zip(done[0].model.parameters(), done[1].model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert (done[0].cost.forward_samples, done[0].cost.backward_samples) == (80, 0)


def test_says_why_there_is_nothing_to_remove() -> None:
    """Random images to forget look like the retained ones: no probe tells them apart; the stem is spanned."""
    data = random_request()
    network, accelerator = trained(small_group_norm_cnn(), data), Accelerator(cpu=True)
    with pytest.raises(ValueError, match=r"of 3 layers, .* span 1, .* chance in the other 2; .* classes"):
        unlearn(Damp(), network, data, accelerator=accelerator, seed=0)


def test_separability_of_chance_is_small_and_of_apart_groups_one() -> None:
    """The probe is judged on images that it was not fit on."""
    draws = np.random.default_rng(0)
    one, two = draws.standard_normal((60, 40)), draws.standard_normal((300, 40))
    assert separability(one, two) < 0.25
    assert separability(one + 10, two) == 1.0
