"""NegMerge: what all task vectors agree on."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.negmerge import NegMerge, merged
from gen_unlearn.methods.classification.task_arithmetic import task_vector
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.repro import derive_seed, image_ids


def test_merged_keeps_the_mean_where_all_signs_agree() -> None:
    """Coordinates with another sign, or with a zero, are dropped."""
    vectors = [
        {"w": torch.tensor([1.0, -1.0, 2.0, 0.0, -3.0])},
        {"w": torch.tensor([3.0, -2.0, -2.0, 1.0, -3.0])},
        {"w": torch.tensor([2.0, -3.0, 2.0, 1.0, -6.0])},
    ]
    assert merged(vectors)["w"].tolist() == [2.0, -2.0, 0.0, 0.0, -4.0]


def test_the_result_goes_against_the_merged_vector() -> None:
    """One training for each rate, with an order of its own; coordinates in dispute stay to the bit."""
    images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(24, dtype=np.int64) % 3
    data = IndexedImages(images, labels, image_ids(images), ("a", "b", "c"), tuple(map(str, range(24))))
    request = UnlearnData(data.select(np.arange(8)), data.select(np.arange(8, 24)), data.select(np.arange(0)))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    accelerator, method = Accelerator(cpu=True), NegMerge(lr=0.2, epochs=2, batch_forget=3, scale=0.5)
    done = unlearn(method, network, request, accelerator=accelerator, seed=4)
    assert done.cost.backward_samples == 3 * 2 * 8
    vectors = []
    for number, rate in enumerate(method.rates):
        settings = NegMerge(lr=0.2 * rate, epochs=2, batch_forget=3)
        seed = derive_seed(4, "negmerge", number)
        vectors.append(
            task_vector(
                settings,
                copy.deepcopy(network),
                request.forget,
                accelerator=accelerator,
                seed=seed,
                budget=Budget(),
            )
        )
    start, dropped = dict(network.named_parameters()), 0
    for name, after in done.model.named_parameters():
        stacked = torch.stack([vector[name] for vector in vectors])
        disputed = ~((stacked > 0).all(dim=0) | (stacked < 0).all(dim=0))
        dropped += int(disputed.sum())
        assert torch.equal(after[disputed], start[name][disputed])
        expected = start[name] - 0.5 * stacked.mean(dim=0)
        torch.testing.assert_close(after[~disputed], expected[~disputed])
    assert dropped > 0


def test_one_rate_is_refused() -> None:
    """There is nothing to agree with."""
    with pytest.raises(ValueError, match="two rates"):
        NegMerge(rates=(1.0,))
