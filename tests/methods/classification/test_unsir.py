"""UNSIR: the noise, whole classes, and what impairing and repairing do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_requests import apply, same_state

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.unsir import Unsir
from gen_unlearn.methods.logits import cross_entropy
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.method import unlearn


def learned(method, tiny_mlp, class_data, cpu):
    """Noise against the class to forget, and its loss under the original."""
    noise, labels = method.noise(tiny_mlp, class_data.forget, cpu, 0, Budget())
    assert set(labels.tolist()) == {0}
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(tiny_mlp(noise), torch.from_numpy(labels))
    return noise, float(loss)


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_the_noise_raises_the_loss_of_its_class(tiny_mlp, class_data, cpu, penalty):
    start, before = learned(Unsir(noise_steps=0), tiny_mlp, class_data, cpu)
    noise, after = learned(Unsir(penalty=penalty), tiny_mlp, class_data, cpu)
    objective = [
        penalty * float(found.square().flatten(1).sum(dim=1).mean()) - loss
        for found, loss in ((start, before), (noise, after))
    ]
    assert objective[1] < objective[0] - 0.5
    assert after > before
    assert noise.shape == (32, 1, 4, 4)


def test_a_heavy_penalty_shortens_the_noise(tiny_mlp, class_data, cpu):
    light, _ = learned(Unsir(penalty=0.0), tiny_mlp, class_data, cpu)
    heavy, _ = learned(Unsir(penalty=10.0), tiny_mlp, class_data, cpu)
    assert heavy.norm() < 0.5 * light.norm()


def test_impairing_is_a_gradient_step_on_noise_and_retained_images(tiny_mlp, class_data, cpu):
    method = Unsir(
        optimizer="sgd", momentum=0.0, lr=0.1, repair_epochs=0, copies=3, noise_images=4, batch_retain=1000
    )
    noise, _ = method.noise(tiny_mlp, class_data.forget, cpu, 0, Budget())
    found = apply(method, tiny_mlp, class_data)
    batch = batch_of(class_data.retain, np.arange(len(class_data.retain)))
    both = batch._replace(
        inputs=torch.cat([noise] * 3 + [batch.inputs]),
        labels=torch.cat([torch.zeros(12, dtype=torch.int64), batch.labels]),
    )
    gradients = torch.autograd.grad(cross_entropy(tiny_mlp, both), list(tiny_mlp.parameters()))
    for own, old, gradient in zip(found.parameters(), tiny_mlp.parameters(), gradients, strict=True):
        torch.testing.assert_close(own, old - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_impairing_harms_and_repairing_repairs(tiny_mlp, class_data, cpu):
    method = Unsir(lr=0.02, repair_lr=0.01, repair_epochs=2, copies=10, batch_retain=32)
    impaired = apply(replace(method, repair_epochs=0), tiny_mlp, class_data)
    repaired = unlearn(method, tiny_mlp, class_data, accelerator=cpu, seed=0)
    retain = batch_of(class_data.retain, np.arange(len(class_data.retain)))
    with torch.no_grad():
        losses = [float(cross_entropy(model, retain)) for model in (tiny_mlp, repaired.model, impaired)]
    assert losses[0] < losses[1] < 0.5 * losses[2]
    assert repaired.cost.backward_samples == 32 * 25 + (32 * 10 + 40) + 2 * 40
    assert repaired.cost.forward_samples == repaired.cost.backward_samples


def test_few_retained_images_are_enough(tiny_mlp, class_data, cpu):
    method = Unsir(retain_per_class=3, copies=1, noise_images=4, noise_steps=2)
    found = unlearn(method, tiny_mlp, class_data, accelerator=cpu, seed=0)
    assert found.cost.backward_samples == 4 * 2 + (4 + 6) + 6
    assert same_state(found.model, apply(method, tiny_mlp, class_data))


def test_images_of_a_retained_class_are_refused(tiny_mlp, request_data, cpu):
    with pytest.raises(ValueError, match="whole classes"):
        unlearn(Unsir(), tiny_mlp, request_data, accelerator=cpu, seed=0)


def test_settings_are_checked():
    for settings in ({"noise_lr": 0.0}, {"copies": 0}, {"penalty": -1.0}, {"repair_epochs": -1}):
        with pytest.raises(ValueError, match="expected"):
            Unsir(**settings)
