"""SalUn for denoisers: its mask, its pseudo-labels, its reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.methods.diffusion.labels import pseudo_labels
from gen_unlearn.methods.diffusion.salun import PseudoLabelLoss, SalunDenoiser, guided_saliency
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.saliency import top_mask
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.repro import digest_state

METHOD = SalunDenoiser(steps=3, batch_forget=8, batch_retain=8)


def changed(before: DenoisingModel, after: torch.nn.Module) -> dict[str, Tensor]:
    """Return where the weights of two models differ."""
    return {name: p != after.get_parameter(name) for name, p in before.named_parameters()}


def saliency_of(model: DenoisingModel, data: UnlearnData, guidance: float = 2.0) -> dict[str, Tensor]:
    """Return the saliency of the images to forget, in batches of 8."""
    return guided_saliency(
        model, data.forget, guidance=guidance, clip=1.0, batch_size=8, seed=0, budget=Budget()
    )


def test_as_many_weights_move_as_the_mask_has_and_no_others(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    method = replace(METHOD, weight_decay=0.1)
    found = unlearn(method, tiny_denoising_model, class_data, accelerator=cpu, seed=0)
    moved = changed(tiny_denoising_model, found.model)
    mask = METHOD.mask(tiny_denoising_model, class_data.forget, seed=0, budget=Budget())
    assert not any((moved[name] & ~mask[name]).any() for name in mask)
    weights = sum(one.numel() for one in mask.values())
    assert sum(int(one.sum()) for one in moved.values()) / weights == pytest.approx(0.5, abs=0.02)
    assert sum(int(one.sum()) for one in mask.values()) == (weights + 1) // 2


def test_the_mask_keeps_the_largest_summed_gradients(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData
) -> None:
    scores = saliency_of(tiny_denoising_model, class_data)
    mask = METHOD.mask(tiny_denoising_model, class_data.forget, seed=0, budget=Budget())
    expected = top_mask(scores, 0.5)
    assert all(torch.equal(mask[name], expected[name]) for name in mask)
    inside = torch.cat([scores[name][mask[name]] for name in mask])
    outside = torch.cat([scores[name][~mask[name]] for name in mask])
    assert inside.min() >= outside.max()


def test_saliency_takes_no_step_leaves_no_gradient_and_uses_the_null_label(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData
) -> None:
    before = digest_state(tiny_denoising_model.state_dict())
    guided = saliency_of(tiny_denoising_model, class_data)
    plain = saliency_of(tiny_denoising_model, class_data, guidance=1.0)
    assert digest_state(tiny_denoising_model.state_dict()) == before
    assert all(p.grad is None for p in tiny_denoising_model.parameters())
    embedding = "network.class_embedding.weight"
    assert guided[embedding][tiny_denoising_model.classes].any()
    assert not plain[embedding][tiny_denoising_model.classes].any()


def test_gradients_of_batches_are_clipped_before_they_are_summed(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData
) -> None:
    def norm_of(clip: float) -> float:
        found = guided_saliency(
            tiny_denoising_model,
            class_data.forget.select(np.arange(8)),
            guidance=2.0,
            clip=clip,
            batch_size=8,
            seed=0,
            budget=Budget(),
        )
        return float(torch.cat([one.reshape(-1) for one in found.values()]).norm())

    assert norm_of(1e-3) == pytest.approx(1e-3, rel=1e-2)
    assert norm_of(1e9) > 1e-2


def test_a_pseudo_label_is_the_next_class_and_never_a_forgotten_one(
    request_data: UnlearnData, class_data: UnlearnData
) -> None:
    assert pseudo_labels(3, class_data.forget, class_data.retain)[0] == 1
    last = request_data.retain.select(np.flatnonzero(request_data.retain.labels == 2))
    rest = request_data.retain.select(np.flatnonzero(request_data.retain.labels != 2))
    assert pseudo_labels(3, last, rest)[2] == 0
    two = request_data.retain.select(np.flatnonzero(request_data.retain.labels < 2))
    assert pseudo_labels(3, two, last)[:2].tolist() == [2, 2]


def test_single_images_of_all_classes_take_the_next_class_that_is_retained(
    request_data: UnlearnData,
) -> None:
    assert set(request_data.forget.labels.tolist()) == {0, 1, 2}
    assert pseudo_labels(3, request_data.forget, request_data.retain).tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match="forget fewer"):
        pseudo_labels(3, request_data.forget, request_data.retain.select(np.arange(0)))


def test_the_target_is_the_references_prediction_under_the_pseudo_label(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData
) -> None:
    batch = batch_of(class_data.forget, np.arange(6))
    budget = Budget()
    same = PseudoLabelLoss(0, torch.arange(3), tiny_denoising_model, budget)
    other = PseudoLabelLoss(0, torch.tensor([1, 2, 0]), tiny_denoising_model, budget)
    assert same(tiny_denoising_model, batch) == 0
    assert other(tiny_denoising_model, batch) > 0
    assert (budget.forward_samples, budget.backward_samples) == (12, 0)


@pytest.mark.parametrize("reference", ["frozen", "moving"])
def test_the_forgotten_label_comes_to_look_like_its_pseudo_label(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator, reference: str
) -> None:
    """Take the distance to the reference that was learnt from: the original, or the result itself."""
    method = SalunDenoiser(steps=30, lr=3e-3, batch_forget=20, batch_retain=8, retain_weight=0.0)
    method = replace(method, reference=reference)
    found = unlearn(method, tiny_denoising_model, class_data, accelerator=cpu, seed=0).model
    batch = batch_of(class_data.forget, np.arange(20))
    own = tiny_denoising_model if reference == "frozen" else None
    loss = PseudoLabelLoss(7, torch.tensor([1, 2, 0]), own, Budget())
    with torch.no_grad():
        assert loss(found, batch) < 0.5 * loss(tiny_denoising_model, batch)


def test_a_step_costs_both_parts_and_a_forward_pass_of_the_reference(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    cost = unlearn(METHOD, tiny_denoising_model, class_data, accelerator=cpu, seed=0).cost
    assert (cost.forward_samples, cost.backward_samples) == (3 * 24 + 2 * 20, 3 * 16 + 2 * 20)


def test_a_network_without_labels_is_refused(
    tiny_unconditional_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    with pytest.raises(ValueError, match="without labels, such as siss"):
        unlearn(METHOD, tiny_unconditional_model, class_data, accelerator=cpu, seed=0)


def test_the_preset_multiplies_the_weight_of_the_retained_sum_by_the_pixels(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    preset = SalunDenoiser.presets()["cifar10"]
    short = replace(preset.method, steps=2)
    assert unlearn(short, tiny_denoising_model, class_data, accelerator=cpu, seed=0).cost.passes > 0
    assert preset.method.retain_weight == pytest.approx(3.072)
    assert preset.method.clip == 1.0
    assert (preset.published_reduction, preset.pixels) == ("sum", 3072)
