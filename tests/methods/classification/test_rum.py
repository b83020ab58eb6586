"""RUM: three groups, one after the other, each with its own method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.fine_tune import FineTune
from gen_unlearn.methods.classification.negative_gradient import NegGradPlus
from gen_unlearn.methods.classification.random_labels import RandomLabels
from gen_unlearn.methods.classification.rum import Rum, in_thirds, margins
from gen_unlearn.methods.classification.saliency_unlearning import SaliencyUnlearning
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.pixels import to_model_input
from gen_unlearn.recipes import validated
from gen_unlearn.repro import derive_seed, image_ids


def _request() -> UnlearnData:
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(30, dtype=np.int64) % 3
    data = IndexedImages(images, labels, image_ids(images), ("a", "b", "c"), tuple(map(str, range(30))))
    return UnlearnData(data.select(np.arange(11)), data.select(np.arange(11, 30)), data.select(np.arange(0)))


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def test_margins_match_the_definition() -> None:
    """Probabilities .7, .2, .1 of class 0: log(.7 / .3), also where exponentials would overflow."""
    scores = np.log([[0.7, 0.2, 0.1]])
    np.testing.assert_allclose(margins(scores, np.array([0])), [0.847298], atol=1e-6)
    np.testing.assert_allclose(margins(scores + 5000, np.array([1])), [np.log(0.2 / 0.8)], atol=1e-9)


def test_thirds_are_by_score_then_id_and_the_high_one_has_the_rest() -> None:
    """Eight scores, two of them equal."""
    ids = np.zeros((8, 16), dtype=np.uint8)
    ids[:, 0] = [7, 6, 5, 4, 3, 2, 1, 0]
    groups = in_thirds(np.array([5.0, 1, 1, 0, 9, 8, 7, 6]), ids)
    assert [group.tolist() for group in groups] == [[3, 2], [1, 0], [7, 6, 5, 4]]
    assert [len(group) for group in in_thirds(np.zeros(1), ids[:1])] == [0, 0, 1]


def test_methods_follow_one_another_from_low_to_high() -> None:
    """The same by hand: least memorised first; images of other groups are in neither part."""
    data, network, accelerator = _request(), _network(), Accelerator(cpu=True)
    mid, high = RandomLabels(lr=0.1, epochs=2, batch_forget=2), NegGradPlus(lr=0.05, epochs=3, batch_forget=2)
    method = Rum(
        methods=("none", "random-labels", "neggrad-plus"),
        lr=(1.0, 0.1, 0.05),
        epochs=(1, 2, 3),
        batch_forget=2,
    )
    done = unlearn(method, network, data, accelerator=accelerator, seed=3)
    with torch.no_grad():
        scores = network(to_model_input(data.forget.images)).numpy()
    hardest_last = np.argsort(-margins(scores, data.forget.labels))
    expected = network
    budget = Budget()
    for number, method_of_part, rows in ((1, mid, hardest_last[3:6]), (2, high, hardest_last[6:])):
        part = UnlearnData(data.forget.select(rows), data.retain, data.heldout)
        seed = derive_seed(3, "rum", number)
        expected = method_of_part(expected, part, accelerator=accelerator, seed=seed, budget=budget)
    for one, two in zip(done.model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, two)
    assert done.cost.forward_samples == 11 + budget.forward_samples  # The proxy looks at 11 images.
    assert done.cost.backward_samples == budget.backward_samples


def test_entanglement_groups_by_the_distance_to_the_retained_images() -> None:
    """The nearest to their mean logits are high: only these are moved against."""
    data, network, accelerator = _request(), _network(), Accelerator(cpu=True)
    method = Rum(
        refinement="entanglement",
        methods=("none", "none", "neggrad-plus"),
        lr=(0.1, 0.1, 0.1),
        lr_factor=2.0,
        batch_retain=19,
    )
    done = unlearn(method, network, data, accelerator=accelerator, seed=3)
    with torch.no_grad():
        centre = network(to_model_input(data.retain.images)).double().mean(dim=0)
        distances = (network(to_model_input(data.forget.images)).double() - centre).norm(dim=1).numpy()
    part = UnlearnData(data.forget.select(np.argsort(distances)[:5]), data.retain, data.heldout)
    doubled = NegGradPlus(lr=0.2, epochs=5, batch_retain=19)
    expected = doubled(
        network,
        part,
        accelerator=accelerator,
        seed=derive_seed(3, "rum", 2),
        budget=Budget(),
    )
    for one, two in zip(done.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_defaults_and_what_cannot_work() -> None:
    """By default the easy third is left alone; no method at all and unknown ones are refused."""
    assert [type(Rum().method_of(group)) for group in range(3)] == [type(None), FineTune, SaliencyUnlearning]
    with pytest.raises(ValueError, match="got none"):
        Rum(methods=("none", "none", "none"))
    with pytest.raises(ValueError, match="methods"):
        validated(Rum, {"methods": ["none", "salun"]}, "rum")
    with pytest.raises(ValueError, match="methods"):
        validated(Rum, {"methods": ["none", "salun", "scrub"]}, "rum")
    assert validated(Rum, {"methods": ["none", "none", "salun"]}, "rum").methods == ("none", "none", "salun")
