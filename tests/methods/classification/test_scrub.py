"""SCRUB and its rewinding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from small_requests import apply, same_state
from torch import nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.fine_tune import FineTune
from gen_unlearn.methods.classification.scrub import Scrub
from gen_unlearn.methods.classification.scrub_rewind import ScrubRewind, rewind_epoch
from gen_unlearn.methods.logits import Distance, Teacher
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.unlearn_data import UnlearnData

SMALL = {"epochs": 4, "batch_forget": 5, "batch_retain": 16, "lr": 0.05}


def test_without_teacher_and_ascent_it_is_fine_tuning(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    scrub = Scrub(msteps=0, alpha=0.0, gamma=1.0, milestones=(), weight_decay=0.0, **SMALL)
    assert same_state(apply(scrub, tiny_mlp, request_data), apply(FineTune(**SMALL), tiny_mlp, request_data))


def test_the_ascent_has_no_gradient_at_the_original(
    tiny_batch_norm_cnn: nn.Module, request_data: UnlearnData
) -> None:
    student = copy.deepcopy(tiny_batch_norm_cnn)
    teacher = Teacher(student, Budget())
    ascent = Scrub(first_phase="max").passes(teacher, Distance(teacher, 4.0), request_data)(0)[0][0]
    assert ascent.weight == -1
    assert ascent.data is request_data.forget
    ascent.loss(student, batch_of(request_data.forget, np.arange(12))).backward()
    norm = sum(p.grad.square().sum().item() for p in student.parameters() if p.grad is not None) ** 0.5
    assert norm < 1e-5


def test_the_ascent_ends_after_msteps(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    for first, order in (("min", "rf"), ("max", "fr")):
        teacher = Teacher(tiny_mlp, Budget())
        passes = Scrub(msteps=2, first_phase=first).passes(teacher, Distance(teacher, 4.0), request_data)
        kinds = [
            "".join("f" if one[0].data is request_data.forget else "r" for one in passes(epoch))
            for epoch in range(4)
        ]
        assert kinds == [order, order, "r", "r"]


def test_an_ascent_that_never_leaves_the_original_is_an_error(
    tiny_mlp: nn.Module, request_data: UnlearnData
) -> None:
    """One phase at the original has no gradient; a second one has, after a descent."""
    settings = SMALL | {"first_phase": "max", "weight_decay": 0.0}
    with pytest.raises(ValueError, match="distance was 0 in every step; begin with the descent"):
        apply(Scrub(msteps=1, **settings), tiny_mlp, request_data)
    assert not same_state(apply(Scrub(msteps=2, **settings), tiny_mlp, request_data), tiny_mlp)
    assert not same_state(apply(Scrub(msteps=0, **settings), tiny_mlp, request_data), tiny_mlp)


def test_the_teacher_stays(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    student = copy.deepcopy(tiny_mlp)
    teacher = Teacher(student, Budget())
    method = Scrub(**SMALL)
    passes = method.passes(teacher, Distance(teacher, 4.0), request_data)
    method.run(student, passes, accelerator=Accelerator(cpu=True), seed=0, budget=Budget())
    assert same_state(teacher.model, tiny_mlp)
    assert not same_state(student, tiny_mlp)


def test_rewinds_to_the_closest_epoch(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    assert rewind_epoch([0.0, 0.2, 0.5, 0.9], 0.3) == 1
    assert rewind_epoch([0.25, 0.75], 0.5) == 1
    settings = SMALL | {"lr": 0.3, "msteps": 4, "alpha": 0.5}
    found = apply(ScrubRewind(**settings), tiny_mlp, request_data)
    epochs = [apply(Scrub(**settings | {"epochs": n}), tiny_mlp, request_data) for n in (1, 2, 3, 4)]

    def error(model: nn.Module, part: str) -> float:
        images = getattr(request_data, part)
        batch = batch_of(images, np.arange(len(images)))
        with torch.no_grad():
            return (model(batch.inputs).argmax(1) != batch.labels).double().mean().item()

    errors = [error(model, "forget") for model in epochs]
    best = rewind_epoch(errors, error(epochs[-1], "heldout"))
    assert [same_state(found, model) for model in epochs] == [n == best for n in range(4)]


def test_rewinding_needs_the_classes_held_out(tiny_mlp: nn.Module, class_data: UnlearnData) -> None:
    others = class_data.heldout.select(class_data.heldout.labels != 0)
    data = UnlearnData(class_data.forget, class_data.retain, others)
    with pytest.raises(ValueError, match=r"held-out images of the classes \[0\]"):
        apply(ScrubRewind(), tiny_mlp, data)
