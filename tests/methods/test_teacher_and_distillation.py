"""The frozen teacher and the distillation loss."""

from __future__ import annotations

import copy

import pytest
import torch
from small_requests import same_state
from torch import nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.logits import Teacher, frozen_teacher, kd_loss


def test_a_teacher_shares_nothing(tiny_batch_norm_cnn: nn.Module) -> None:
    student = copy.deepcopy(tiny_batch_norm_cnn).train()
    teacher = frozen_teacher(student)
    before = copy.deepcopy(teacher)
    assert not teacher.training
    assert student.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    with torch.no_grad():
        student(torch.randn(4, 1, 4, 4))
        for parameter in student.parameters():
            parameter.add_(1)
    assert same_state(teacher, before)


def test_a_teacher_counts(tiny_mlp: nn.Module) -> None:
    budget = Budget()
    found = Teacher(tiny_mlp, budget)(torch.zeros(7, 1, 4, 4))
    assert not found.requires_grad
    assert (budget.forward_samples, budget.backward_samples) == (7, 0)


def test_distillation_is_the_divergence_from_teacher_to_student() -> None:
    teacher = torch.tensor([[0.7, 0.2, 0.1]]).log()
    student = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert kd_loss(teacher=teacher, student=student).item() == pytest.approx(0.085123, abs=1e-6)
    assert kd_loss(teacher=student, student=teacher).item() == pytest.approx(0.092033, abs=1e-6)
    repeated = kd_loss(teacher=teacher.repeat(5, 1), student=student.repeat(5, 1))
    assert repeated.item() == pytest.approx(0.085123, abs=1e-6)
    assert kd_loss(teacher=teacher, student=teacher, temperature=3.0).item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_hardly_depends_on_the_temperature() -> None:
    teacher = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    norms = []
    for temperature in (4.0, 8.0, 32.0):
        student = torch.zeros(50, 10, requires_grad=True)
        teacher.requires_grad_(True)
        kd_loss(teacher=teacher, student=student, temperature=temperature).backward()
        assert student.grad is not None
        norms.append(student.grad.norm().item())
        assert teacher.grad is None, "the gradient goes into the student alone"
    assert max(norms) < 1.2 * min(norms)
