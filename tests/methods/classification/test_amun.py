"""AMUN: near examples with wrong labels, trained on as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_requests import apply, same_state

from gen_unlearn.methods.adversarial import predict
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.amun import Amun
from gen_unlearn.methods.classification.fine_tune import FineTune
from gen_unlearn.methods.float_images import FloatImages
from gen_unlearn.methods.logits import cross_entropy
from gen_unlearn.methods.loop import batch_of, batches_of
from gen_unlearn.methods.method import unlearn
from gen_unlearn.training.classification_batches import Augmentation


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_every_example_is_wrong_and_near(tiny_mlp, request_data, cpu, norm):
    budget = Budget()
    inputs, labels = Amun(norm=norm).adversarial(tiny_mlp, request_data.forget, cpu, budget)
    assert (labels != request_data.forget.labels).all()
    assert (predict(tiny_mlp, inputs, Budget()).numpy() == labels).all()
    centres = next(batches_of(request_data.forget, 1000)).inputs
    other = torch.rand_like(centres) * 2 - 1
    away = (inputs - centres).flatten(1).norm(dim=1)
    assert (away < (other - centres).flatten(1).norm(dim=1)).all()
    assert budget.forward_samples > budget.backward_samples > 0


def test_one_step_on_the_forget_images_is_a_gradient_step_on_the_examples(tiny_mlp, request_data, cpu):
    method = Amun(train_on="forget", epochs=1, lr=0.1, momentum=0.0)
    inputs, labels = method.adversarial(tiny_mlp, request_data.forget, cpu, Budget())
    found = apply(method, tiny_mlp, request_data)
    batch = batch_of(request_data.forget, np.arange(len(request_data.forget)))
    adversarial = batch._replace(inputs=inputs, labels=torch.from_numpy(labels))
    gradients = torch.autograd.grad(cross_entropy(tiny_mlp, adversarial), list(tiny_mlp.parameters()))
    for own, old, gradient in zip(found.parameters(), tiny_mlp.parameters(), gradients, strict=True):
        torch.testing.assert_close(own, old - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_it_is_paid_for_and_makes_the_model_less_sure(tiny_mlp, request_data, cpu):
    attack = Budget()
    method = Amun(epochs=5, lr=0.05)
    method.adversarial(tiny_mlp, request_data.forget, cpu, attack)
    found = unlearn(method, tiny_mlp, request_data, accelerator=cpu, seed=1)
    images = len(request_data.forget) + len(request_data.retain)
    assert found.cost.backward_samples == attack.backward_samples + 5 * images
    assert found.cost.forward_samples == attack.forward_samples + 5 * images
    batch = batch_of(request_data.forget, np.arange(len(request_data.forget)))
    tuned = apply(FineTune(epochs=5, lr=0.05), tiny_mlp, request_data, seed=1)
    with torch.no_grad():
        losses = [float(cross_entropy(model, batch)) for model in (found.model, tiny_mlp, tuned)]
    assert losses[0] > 1.3 * losses[1]
    assert losses[0] > 1.3 * losses[2]


def test_without_an_example_nothing_is_trained(tiny_mlp, request_data, cpu):
    with pytest.raises(ValueError, match="raise epsilon or doublings"):
        unlearn(Amun(epsilon=1e-6), tiny_mlp, request_data, accelerator=cpu, seed=0)


def test_settings_matter_and_are_checked(tiny_mlp, request_data):
    short = Amun(epochs=1)
    assert not same_state(
        apply(short, tiny_mlp, request_data), apply(replace(short, stop="last"), tiny_mlp, request_data)
    )
    for settings in ({"epsilon": 0.0}, {"doublings": -1}, {"attack_steps": 0}, {"norm": "l1"}):
        with pytest.raises(ValueError, match="expected"):
            Amun(**settings)


def test_float_images_stand_in_for_the_first_ones(request_data):
    data = request_data.forget.select(np.arange(5))
    stand_ins = FloatImages(torch.arange(2.0)[:, None, None, None].expand(2, 1, 4, 4), np.array([1, 0, 1]))
    rows = np.array([4, 1, 2, 3, 0])
    batch, plain = batch_of(data, rows, floats=stand_ins), batch_of(data, rows)
    assert batch.inputs[[1, 2, 4]].flatten(1).tolist() == [[0.0] * 16, [1.0] * 16, [1.0] * 16]
    assert torch.equal(batch.inputs[[0, 3]], plain.inputs[[0, 3]])
    assert torch.equal(batch.labels, plain.labels)
    none = np.array([3, 4])
    assert torch.equal(batch_of(data, none, floats=stand_ins).inputs, batch_of(data, none).inputs)


def test_float_images_are_augmented_like_others(request_data):
    data = request_data.forget.select(np.arange(12))
    inputs = torch.rand(6, 1, 4, 4)
    flips, rows = Augmentation(horizontal_flip=True), np.arange(12)
    found, plain = (
        batch_of(data, rows, flips, np.random.default_rng(1), floats=floats).inputs
        for floats in (FloatImages.one_each(inputs), None)
    )
    before = torch.cat([inputs, batch_of(data, rows).inputs[6:]])
    flipped = (found == before.flip(3)).flatten(1).all(dim=1)
    as_it_was = (found == before).flatten(1).all(dim=1)
    assert (flipped | as_it_was).all()
    assert 0 < int(flipped[:6].sum()) < 6
    assert torch.equal(found[6:], plain[6:])
