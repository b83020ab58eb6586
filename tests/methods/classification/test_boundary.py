"""Boundary unlearning: labels beyond the boundary, and a neuron that comes and goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_requests import CLASSES
from torch import nn

from gen_unlearn.methods.adversarial import fgsm, predict
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.boundary import (
    BoundaryExpand,
    BoundaryShrink,
    head_of,
    narrowed,
    widened,
)
from gen_unlearn.methods.loop import batches_of
from gen_unlearn.methods.method import unlearn


def confidence(model: nn.Module, images) -> float:
    """Mean probability of the labels."""
    batch = next(batches_of(images, 1000))
    with torch.no_grad():
        chosen = model(batch.inputs).softmax(dim=1).gather(1, batch.labels[:, None])
    return float(chosen.mean())


def test_labels_are_those_of_the_attacked_images(tiny_mlp, request_data, cpu):
    forget, budget = request_data.forget, Budget()
    batch = next(batches_of(forget, 1000))
    attacked = fgsm(tiny_mlp, batch.inputs, batch.labels, epsilon=0.3, budget=Budget())
    labels = BoundaryShrink(epsilon=0.3, batch_forget=4).labels(tiny_mlp, forget, cpu, budget)
    assert (labels == predict(tiny_mlp, attacked, Budget()).numpy()).all()
    assert (labels != forget.labels).any()
    assert (budget.forward_samples, budget.backward_samples) == (2 * len(forget), len(forget))


def test_a_step_too_short_for_the_boundary_keeps_the_label_unless_a_wrong_one_is_asked_for(
    tiny_mlp, request_data, cpu
):
    forget = request_data.forget
    forget = forget.select(np.flatnonzero(forget.labels == 1))
    kept = BoundaryShrink(epsilon=1e-6).labels(tiny_mlp, forget, cpu, Budget())
    wrong = BoundaryShrink(epsilon=1e-6, label="wrong").labels(tiny_mlp, forget, cpu, Budget())
    assert (kept == forget.labels).all()
    assert (wrong != forget.labels).all()


@pytest.mark.parametrize("method", [BoundaryShrink(lr=0.02, label="wrong"), BoundaryExpand(lr=0.02)])
def test_the_images_are_forgotten_with_the_same_structure(tiny_mlp, class_data, cpu, method):
    found = unlearn(method, tiny_mlp, class_data, accelerator=cpu, seed=3)
    assert confidence(found.model, class_data.forget) < confidence(tiny_mlp, class_data.forget) - 0.2
    shapes = {name: value.shape for name, value in tiny_mlp.state_dict().items()}
    assert {name: value.shape for name, value in found.model.state_dict().items()} == shapes
    assert found.model(torch.zeros(2, 1, 4, 4)).shape == (2, CLASSES)
    assert [type(part) for part in found.model.modules()] == [type(part) for part in tiny_mlp.modules()]


def test_expanding_is_paid_for_and_repeats(tiny_mlp, request_data, cpu):
    first, second = (
        unlearn(BoundaryExpand(epochs=2), tiny_mlp, request_data, accelerator=cpu, seed=3) for _ in range(2)
    )
    assert first.cost.forward_samples == 2 * len(request_data.forget) + 1
    assert first.cost.backward_samples == 2 * len(request_data.forget)
    for own, other in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(own, other)


def test_a_wide_head_agrees_on_the_old_classes_and_shrinks_back_to_the_bit(tiny_mlp):
    name, head = head_of(tiny_mlp, torch.zeros(1, 1, 4, 4), Budget())
    assert name == "head"
    before = head.weight.clone()
    wide = widened(head, torch.Generator().manual_seed(0))
    features = torch.randn(5, head.in_features)
    torch.testing.assert_close(wide(features)[:, :CLASSES], head(features))
    assert wide.weight[-1].abs().max() <= head.in_features**-0.5
    assert wide.weight[-1].std() > 0
    assert torch.equal(narrowed(wide, head).weight, before)


def test_a_network_without_a_linear_head_is_refused(request_data, cpu):
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES), nn.Softplus()).eval()
    with pytest.raises(ValueError, match="linear layer"):
        unlearn(BoundaryExpand(), network, request_data, accelerator=cpu, seed=0)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="epsilon above 0"):
        BoundaryShrink(epsilon=0.0)
    with pytest.raises(ValueError, match="label to be"):
        BoundaryShrink(label="other")
