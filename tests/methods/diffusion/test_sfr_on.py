"""SFR-on: its mask, its adaptive weights, its alternation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import DenoisingLoss, DenoisingModel, copy_of_denoiser
from gen_unlearn.methods.diffusion.gradients import gradient_of
from gen_unlearn.methods.diffusion.per_image import denoising_fisher
from gen_unlearn.methods.diffusion.sfr_on import AdaptiveAscent, SfrOn
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.loop import LoopSettings, Term, batch_of
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.unlearn_data import UnlearnData

METHOD = SfrOn(steps=3, batch_forget=8, batch_retain=8, fisher_samples=16)


def weights_after_each_step(
    method: SfrOn,
    model: DenoisingModel,
    data: UnlearnData,
    cpu: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> list[dict[str, Tensor]]:
    """Return the weights at the start and after every step of the optimiser."""
    own, seen = LoopSettings.run, [{n: p.detach().clone() for n, p in model.named_parameters()}]

    def run(self: LoopSettings, student: nn.Module, *args: object, **options: object) -> None:
        after: Callable[[int, float], None] = options.pop("after_step")  # type: ignore[assignment]

        def both(epoch: int, lr: float) -> None:
            after(epoch, lr)
            seen.append({n: p.detach().clone() for n, p in student.named_parameters()})

        own(self, student, *args, after_step=both, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LoopSettings, "run", run)
    unlearn(method, model, data, accelerator=cpu, seed=0)
    return seen


def test_ascent_moves_the_mask_alone_and_the_repair_moves_all(
    tiny_denoising_model: DenoisingModel,
    class_data: UnlearnData,
    cpu: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = replace(METHOD, weight_decay=0.1)
    mask = method.mask(tiny_denoising_model, class_data, seed=0, budget=Budget())
    seen = weights_after_each_step(method, tiny_denoising_model, class_data, cpu, monkeypatch)
    assert len(seen) == 7
    marked = sum(int(one.sum()) for one in mask.values())
    for step in range(6):
        moved = {name: seen[step][name] != seen[step + 1][name] for name in mask}
        outside = sum(int((moved[name] & ~mask[name]).sum()) for name in mask)
        if step % 2:
            assert outside > 0
        else:
            assert outside == 0
            assert sum(int(one.sum()) for one in moved.values()) == pytest.approx(marked, rel=0.05)


def test_an_ascent_step_has_no_gradient_left_from_the_repair(
    tiny_denoising_model: DenoisingModel,
    class_data: UnlearnData,
    cpu: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compare the second ascent, with plain SGD, to the gradient of its own batch."""
    method = replace(METHOD, optimizer="sgd", momentum=0.0, lr=1e-3, clip=None)
    mask = method.mask(tiny_denoising_model, class_data, seed=0, budget=Budget())
    seen = weights_after_each_step(method, tiny_denoising_model, class_data, cpu, monkeypatch)
    model = copy_of_denoiser(tiny_denoising_model, cpu)
    model.load_state_dict(seen[2])
    loss = AdaptiveAscent(0, 10.0, 0.5, 3)
    rows = next(Term(class_data.forget, loss, 8, drawn=1).rows(0, "order", 1, 0, 0))
    gradient = gradient_of(loss(model, batch_of(class_data.forget, rows, epoch=1)), model)
    for (name, one), own in zip(mask.items(), gradient, strict=True):
        expected = seen[2][name] - 1e-3 * own * one
        torch.testing.assert_close(seen[3][name], expected, rtol=1e-4, atol=1e-6)


def test_a_weight_ascends_where_the_forgotten_images_matter_as_much(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData
) -> None:
    method = replace(METHOD, fisher_samples=1000)
    mask = method.mask(tiny_denoising_model, class_data, seed=0, budget=Budget())
    forget, retain = (
        denoising_fisher(tiny_denoising_model, part, seed=0, role=role, draws=1, budget=Budget())
        for role, part in (
            ("fisher of forget", class_data.forget),
            ("fisher of retain", class_data.retain),
        )
    )
    for name, one in mask.items():
        sure = (forget[name] / retain[name].clamp(min=1e-300) - 1).abs() > 1e-3
        expected = (forget[name] >= retain[name]) & (forget[name] > 0)
        assert torch.equal(one[sure], expected[sure])
    embedding = mask["network.class_embedding.weight"]
    assert embedding[0].any()
    assert not embedding[1:].any()
    everything = replace(METHOD, threshold=0.0).mask(
        tiny_denoising_model, class_data, seed=0, budget=Budget()
    )
    assert sum(int(m.sum()) for m in everything.values()) > sum(int(m.sum()) for m in mask.values())


def test_images_of_low_loss_weigh_more(tiny_denoising_model: DenoisingModel, class_data: UnlearnData) -> None:
    batch = batch_of(class_data.forget, np.arange(10))
    own = DenoisingLoss(0, "forget").per_image(tiny_denoising_model, batch).detach()
    expected = own.pow(-0.5) / own.pow(-0.5).sum()
    found = AdaptiveAscent(0, 10.0, 0.5, 4)(tiny_denoising_model, batch).detach()
    assert float(found) == pytest.approx(-10 * float((expected * own).sum()), rel=1e-5)
    flat = AdaptiveAscent(0, 1.0, 0.0, 4)(tiny_denoising_model, batch).detach()
    assert float(flat) == pytest.approx(-float(own.mean()), rel=1e-5)
    assert -float(found) / 10 < -float(flat)


def test_the_weights_of_images_have_no_gradient(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData
) -> None:
    batch: Batch = batch_of(class_data.forget, np.arange(1))
    parameter = tiny_denoising_model.get_parameter("network.conv_out.weight")
    ascent = AdaptiveAscent(0, 1.0, 0.5, 4)(tiny_denoising_model, batch)
    plain = DenoisingLoss(0, "forget")(tiny_denoising_model, batch)
    first, second = (torch.autograd.grad(one, parameter)[0] for one in (ascent, plain))
    torch.testing.assert_close(first, -second)


def test_the_ascent_falls_to_nothing_by_half_a_cosine() -> None:
    ascent = AdaptiveAscent(0, 10.0, 0.5, 100)
    assert ascent.factor(0) == 10
    assert ascent.factor(50) == pytest.approx(5)
    assert ascent.factor(99) == pytest.approx(5 * (1 + math.cos(0.99 * math.pi)))
    assert ascent.factor(99) < 0.01


def test_no_hook_stays_on_the_result(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    found = unlearn(METHOD, tiny_denoising_model, class_data, accelerator=cpu, seed=0).model
    batch = batch_of(class_data.forget, np.arange(20))
    student = copy_of_denoiser(found, cpu)
    DenoisingLoss(0, "test")(student, batch).backward()
    expected = copy_of_denoiser(tiny_denoising_model, cpu)
    expected.load_state_dict(found.state_dict())
    DenoisingLoss(0, "test")(expected, batch).backward()
    assert all(
        torch.equal(one.grad, two.grad)
        for one, two in zip(student.parameters(), expected.parameters(), strict=True)
        if one.grad is not None and two.grad is not None
    )


def test_steps_and_information_are_counted(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    cost = unlearn(METHOD, tiny_denoising_model, class_data, accelerator=cpu, seed=0).cost
    assert cost.forward_samples == cost.backward_samples == 3 * 16 + 2 * 16


def test_it_runs_on_single_images_without_labels(
    tiny_unconditional_model: DenoisingModel, request_data: UnlearnData, cpu: Accelerator
) -> None:
    found = unlearn(METHOD, tiny_unconditional_model, request_data, accelerator=cpu, seed=0)
    assert found.cost.passes > 0


def test_the_preset_divides_the_clip_by_the_pixels(
    tiny_denoising_model: DenoisingModel, class_data: UnlearnData, cpu: Accelerator
) -> None:
    preset = SfrOn.presets()["cifar10"]
    short = replace(preset.method, steps=2, batch_forget=8, batch_retain=8)
    assert unlearn(short, tiny_denoising_model, class_data, accelerator=cpu, seed=0).cost.passes > 0
    assert preset.method.clip == pytest.approx(1 / 3072)
    assert preset.method.ascent == 10
    assert (preset.published_reduction, preset.pixels) == ("sum", 3072)
