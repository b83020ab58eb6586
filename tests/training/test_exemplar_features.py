"""Exemplars that stay for several steps are encoded once, with the weights of the first."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from gen_unlearn.models.fusion import plan_fusion
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.training.exemplar_features import ExemplarFeatures


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def change(unet: SemiParametricUNet2DModel) -> None:
    with torch.no_grad():
        for parameter in unet.unet.parameters():
            parameter.mul_(1.1)


def test_features_are_those_of_the_first_step(tiny_unet: SemiParametricUNet2DModel) -> None:
    features = ExemplarFeatures(tiny_unet, Accelerator(cpu=True), refresh_steps=3)
    found = []
    for step in range(6):
        given = {"exemplars": draw(5, 1, 8, 8, seed=step // 3)}
        features.add_to(given, step)
        if step % 3 == 0:
            encoded = tiny_unet.exemplar_features(given["exemplars"])
        assert torch.equal(given["features"], encoded)
        assert not given["features"].requires_grad
        found.append(given["features"])
        change(tiny_unet)
    assert found[0] is found[2]
    assert not torch.equal(found[2], found[3])
    assert len(features.kept) == 1


def test_one_step_leaves_the_encoding_to_the_network(tiny_unet: SemiParametricUNet2DModel) -> None:
    features, given = ExemplarFeatures(tiny_unet, Accelerator(cpu=True), 1), {"exemplars": draw(5, 1, 8, 8)}
    features.add_to(given, 0)
    assert set(given) == {"exemplars"}
    assert not features.kept


def test_known_features_give_the_same_and_the_fusion_learns_from_them(
    tiny_unet: SemiParametricUNet2DModel,
) -> None:
    samples, exemplars = draw(3, 1, 8, 8, seed=1), draw(4, 1, 8, 8)
    plan = plan_fusion([0, 0, 1], [torch.arange(2).numpy(), torch.arange(2, 4).numpy()])
    known = tiny_unet.exemplar_features(exemplars)
    gradients = []
    for features in (None, known):
        tiny_unet.zero_grad()
        prediction = tiny_unet(samples, 300, exemplars, plan, features=features).sample
        prediction.square().sum().backward()
        gradients.append([prediction, *(parameter.grad.clone() for parameter in tiny_unet.parameters())])
    assert all(map(torch.equal, *gradients))
    assert tiny_unet.fusion.to_key.weight.grad.abs().sum() > 0
