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
    found = Amun(norm=norm).adversarial(tiny_mlp, request_data.forget, cpu, 0, budget)
    assert (found.labels != request_data.forget.labels).all()
    assert (predict(tiny_mlp, found.inputs, Budget()).numpy() == found.labels).all()
    centres = next(batches_of(request_data.forget, 1000)).inputs
    other = torch.rand_like(centres) * 2 - 1
    away = (found.inputs - centres).flatten(1).norm(dim=1)
    assert (away < (other - centres).flatten(1).norm(dim=1)).all()
    assert budget.forward_samples > budget.backward_samples > 0


def test_one_step_on_the_forget_images_is_a_gradient_step_on_the_examples(tiny_mlp, request_data, cpu):
    method = Amun(train_on="forget", epochs=1, lr=0.1, momentum=0.0)
    examples = method.adversarial(tiny_mlp, request_data.forget, cpu, 0, Budget())
    found = apply(method, tiny_mlp, request_data)
    batch = batch_of(request_data.forget, np.arange(len(request_data.forget)))
    adversarial = batch._replace(inputs=examples.inputs, labels=torch.from_numpy(examples.labels))
    gradients = torch.autograd.grad(cross_entropy(tiny_mlp, adversarial), list(tiny_mlp.parameters()))
    for own, old, gradient in zip(found.parameters(), tiny_mlp.parameters(), gradients, strict=True):
        torch.testing.assert_close(own, old - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_it_is_paid_for_and_makes_the_model_less_sure(tiny_mlp, request_data, cpu):
    attack = Budget()
    method = Amun(epochs=5, lr=0.05)
    method.adversarial(tiny_mlp, request_data.forget, cpu, 0, attack)
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


def test_float_images_stand_in_where_id_and_label_agree(request_data):
    data = request_data.forget.select(np.arange(4))
    inputs = torch.arange(2.0)[:, None, None, None].expand(2, 1, 4, 4)
    stand_ins = FloatImages(data.ids[[2, 0]], data.labels[[2, 0]], inputs)
    batch = batch_of(data, np.arange(4))
    placed = stand_ins.placed(batch)
    assert (placed.inputs[2] == 0).all()
    assert (placed.inputs[0] == 1).all()
    assert torch.equal(placed.inputs[[1, 3]], batch.inputs[[1, 3]])
    assert torch.equal(placed.labels, batch.labels)
    other = batch._replace(labels=(batch.labels + 1) % 3)
    assert torch.equal(stand_ins.placed(other).inputs, batch.inputs)
    with pytest.raises(ValueError, match="as many"):
        FloatImages(data.ids, data.labels, inputs)


def test_float_images_are_augmented_like_others(request_data):
    data = request_data.forget.select(np.arange(12))
    inputs = torch.rand(12, 1, 4, 4)
    batch = batch_of(data, np.arange(12))
    stand_ins = FloatImages(data.ids, data.labels, inputs, Augmentation(horizontal_flip=True), seed=1)
    found = stand_ins.placed(batch).inputs
    flipped = (found == inputs.flip(3)).flatten(1).all(dim=1)
    as_it_was = (found == inputs).flatten(1).all(dim=1)
    assert (flipped ^ as_it_was).all()
    assert flipped.any()
    assert as_it_was.any()
    assert torch.equal(stand_ins.placed(batch).inputs, found)
    assert not torch.equal(stand_ins.placed(batch._replace(epoch=1)).inputs, found)
