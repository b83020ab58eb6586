"""Steps that leave some weights as they are, to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gen_unlearn.methods.masked_step import MaskedStep


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_puts_back_what_decay_and_momentum_moved(tiny_batch_norm_cnn: nn.Module, kind: str) -> None:
    student = copy.deepcopy(tiny_batch_norm_cnn).train()
    before = copy.deepcopy(student.state_dict())
    mask = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in student.named_parameters()}
    mask["3.weight"][1] = True
    optimizer = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
        "adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
    }[kind](student.parameters())
    step = MaskedStep(student, mask, freeze_buffers=True)
    for _ in range(3):
        optimizer.zero_grad()
        student(torch.randn(6, 1, 4, 4)).square().sum().backward()
        optimizer.step()
        step()
    for name, value in student.state_dict().items():
        if name != "3.weight":
            assert torch.equal(value, before[name]), name
    moved = student.state_dict()["3.weight"] != before["3.weight"]
    assert moved[1].all()
    assert not moved[0].any()
    assert not moved[2].any()


def test_buffers_move_unless_frozen_and_names_left_out_stay(tiny_batch_norm_cnn: nn.Module) -> None:
    student = copy.deepcopy(tiny_batch_norm_cnn).train()
    step = MaskedStep(student, {})
    before = copy.deepcopy(student.state_dict())
    with torch.no_grad():
        student(torch.randn(6, 1, 4, 4))
        student[3].weight.add_(1)
    step()
    assert torch.equal(student[3].weight, before["3.weight"])
    assert not torch.equal(student[0][1].running_mean, before["0.1.running_mean"])


def test_refuses_masks_that_do_not_fit(tiny_mlp: nn.Module) -> None:
    with pytest.raises(ValueError, match="absent"):
        MaskedStep(tiny_mlp, {"absent": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(ValueError, match="shape"):
        MaskedStep(tiny_mlp, {"head.bias": torch.ones(2, dtype=torch.bool)})
