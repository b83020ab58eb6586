"""FCS: its two losses by hand, its parts, and what they cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_requests import apply, same_state

from gen_unlearn.methods.classification.fcs import Fcs, contrast_loss, uniform_divergence
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.method import unlearn


def test_the_contrast_is_the_logarithm_of_the_number_where_all_products_agree():
    forget = torch.randn(5, 3)
    same = torch.randn(1, 3).expand(7, 3)
    assert float(contrast_loss(forget, same, 1.15)) == pytest.approx(math.log(7), rel=1e-5)
    different = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    assert contrast_loss(forget, different, 1.15) > math.log(7)


def test_the_contrast_agrees_with_a_loop_and_moves_the_images_to_forget_alone():
    draws = torch.Generator().manual_seed(1)
    forget = torch.randn(2, 3, generator=draws, requires_grad=True)
    retained = torch.randn(4, 3, generator=draws, requires_grad=True)
    loss = contrast_loss(forget, retained, 1.15)
    by_hand = 0.0
    for z in forget.tolist():
        products = [sum(a * b for a, b in zip(z, other, strict=True)) / 1.15 for other in retained.tolist()]
        total = math.log(sum(math.exp(product) for product in products))
        by_hand += sum(total - product for product in products)
    assert float(loss.detach()) == pytest.approx(by_hand / 8, rel=1e-5)
    loss.backward()
    assert forget.grad.abs().max() > 0
    assert retained.grad is None


def test_the_divergence_is_from_the_uniform_distribution(tiny_mlp, request_data):
    batch = batch_of(request_data.forget, np.arange(12))
    with torch.no_grad():
        found = uniform_divergence(tiny_mlp, batch)
        own = tiny_mlp(batch.inputs).log_softmax(dim=1)
    expected = F.kl_div(own, torch.full_like(own, 1 / 3), reduction="batchmean")
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert found > 0.1


def test_the_first_part_alone_makes_outputs_uniform(tiny_mlp, request_data, cpu):
    method = Fcs(uniform_epochs=20, uniform_lr=0.05, epochs=1, lr=1e-9, contrast_lr=1e-9)
    found = unlearn(method, tiny_mlp, request_data, accelerator=cpu, seed=0).model
    batch = batch_of(request_data.forget, np.arange(12))
    with torch.no_grad():
        assert uniform_divergence(found, batch) < 0.5 * uniform_divergence(tiny_mlp, batch)


def test_the_contrast_falls_and_is_paid_for(tiny_mlp, request_data, cpu):
    method = Fcs(uniform_epochs=0, epochs=4, contrast_lr=0.02, lr=1e-9, batch_forget=5, batch_retain=16)
    found = unlearn(method, tiny_mlp, request_data, accelerator=cpu, seed=0)
    forget = batch_of(request_data.forget, np.arange(12)).inputs
    retain = batch_of(request_data.retain, np.arange(48)).inputs
    with torch.no_grad():
        before, after = (contrast_loss(m(forget), m(retain), 1.15) for m in (tiny_mlp, found.model))
    assert after < before
    assert found.cost.backward_samples == 4 * (12 + 48)
    assert found.cost.forward_samples == 4 * (12 + 48 + 3 * 16)  # every batch to forget meets 16 others


def test_all_parts_matter(tiny_mlp, request_data):
    found = [
        apply(method, tiny_mlp, request_data)
        for method in (Fcs(epochs=2), Fcs(epochs=2, uniform_epochs=0), Fcs(epochs=2, contrast_lr=1e-9))
    ]
    assert not same_state(found[0], found[1])
    assert not same_state(found[0], found[2])
    assert same_state(found[0], apply(Fcs(epochs=2), tiny_mlp, request_data))


def test_settings_are_checked():
    for settings in ({"temperature": 0.0}, {"contrast_lr": 0.0}, {"uniform_epochs": -1}, {"decay": "cosine"}):
        with pytest.raises(ValueError, match="expected"):
            Fcs(**settings)
