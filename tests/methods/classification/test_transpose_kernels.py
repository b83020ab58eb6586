"""Transposed kernels: what is transposed, what stays, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.classification.transpose_kernels import TransposeKernels, transpose_kernels
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.repro import digest_state, image_ids


def request() -> UnlearnData:
    draws = np.random.default_rng(7)
    pixels = draws.integers(0, 256, (20, 6, 6, 1)).astype(np.uint8)
    labels, names = draws.integers(0, 3, 20), tuple(str(row) for row in range(20))
    data = IndexedImages(pixels, labels, image_ids(pixels), ("a", "b", "c"), names)
    rows = np.arange(20)
    return UnlearnData(data.select(rows[:5]), data.select(rows[5:]), data.select(rows[:0]))


def network() -> nn.Sequential:
    torch.manual_seed(2)
    convolutions = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=2)]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def test_kernels_are_transposed_and_nothing_else() -> None:
    model, changed = network(), network()
    assert transpose_kernels(changed) == 2
    for name, parameter in model.named_parameters():
        expected = parameter.transpose(2, 3) if name in ("0.weight", "3.weight") else parameter
        assert torch.equal(changed.get_parameter(name), expected)
    assert not torch.equal(changed[0].weight, model[0].weight)
    transpose_kernels(changed)
    assert digest_state(changed.state_dict()) == digest_state(model.state_dict())


def test_a_transposed_network_answers_transposed_images_as_before() -> None:
    model, changed, images = network(), network(), torch.randn(5, 1, 6, 6)
    transpose_kernels(changed)
    torch.testing.assert_close(changed(images.transpose(2, 3)), model(images))
    assert (changed(images) - model(images)).abs().max() > 1e-3


def test_fine_tuning_follows() -> None:
    model, transposed = network(), network()
    transpose_kernels(transposed)
    method = TransposeKernels(lr=1e-6, epochs=1)
    found = unlearn(method, model, request(), accelerator=Accelerator(cpu=True), seed=0)
    torch.testing.assert_close(found.model[0].weight, transposed[0].weight, rtol=0, atol=1e-4)
    assert not torch.equal(found.model[0].weight, transposed[0].weight)
    assert found.cost.forward_samples == 15


def test_refuses_networks_without_square_kernels_and_changes_nothing() -> None:
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    with pytest.raises(ValueError, match="leave this method out"):
        unlearn(TransposeKernels(), mlp, request(), accelerator=Accelerator(cpu=True), seed=0)
    with pytest.raises(ValueError, match="none; "):
        transpose_kernels(nn.Conv2d(3, 3, 1))
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, (3, 1)))
    before = digest_state(model.state_dict())
    with pytest.raises(ValueError, match=r"square kernels, got \(3, 1\) in 1"):
        transpose_kernels(model)
    assert digest_state(model.state_dict()) == before
