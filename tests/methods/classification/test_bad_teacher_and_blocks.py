"""Bad Teacher, CF-k, EU-k, and the table of all methods."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_requests import apply, flat
from torch import nn

from gen_unlearn.methods.classification.bad_teacher import BadTeacher
from gen_unlearn.methods.classification.partial_layers import CatastrophicForgettingK, ExactUnlearningK
from gen_unlearn.methods.classification.scrub import Scrub
from gen_unlearn.methods.classification.table import build_method
from gen_unlearn.methods.logits import kd_loss
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.reinitialise import reinit
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.training.classification_batches import Augmentation


def test_bad_teacher_unlearns_what_is_forgotten(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    method = BadTeacher(lr=0.01, epochs=60, retain_fraction=1.0)
    found = apply(method, tiny_mlp, request_data)

    def confidence(model: nn.Module, part: str) -> float:
        images = getattr(request_data, part)
        batch = batch_of(images, np.arange(len(images)))
        return model.eval()(batch.inputs).softmax(1)[np.arange(len(images)), batch.labels].mean().item()

    drop = {part: confidence(tiny_mlp, part) - confidence(found, part) for part in ("forget", "retain")}
    assert drop["forget"] > 0.2
    assert drop["retain"] < 0.7 * drop["forget"]


def test_the_first_step_follows_the_bad_teacher_alone(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    bad, student = copy.deepcopy(tiny_mlp), copy.deepcopy(tiny_mlp)
    reinit(bad, [""], seed=0)
    batch = batch_of(request_data.forget, np.arange(12))
    kd_loss(teacher=bad(batch.inputs), student=student(batch.inputs), temperature=2.0).backward()
    step = torch.cat([p.grad.double().reshape(-1) for p in student.parameters() if p.grad is not None])
    method = BadTeacher(lr=0.1, optimizer="sgd", temperature=2.0, schedule="zipped")
    found = apply(method, tiny_mlp, request_data)
    assert torch.allclose(flat(found), flat(tiny_mlp) - 0.1 * step, atol=1e-6)


def test_bad_teacher_reads_a_share(request_data: UnlearnData) -> None:
    method = BadTeacher(retain_fraction=0.25)
    chosen = method.chosen(request_data.retain, 0)
    assert len(chosen) == 12
    assert request_data.retain.holds(chosen.ids).all()
    assert not np.array_equal(method.chosen(request_data.retain, 1).ids, chosen.ids)
    with pytest.raises(ValueError, match="retain_fraction"):
        BadTeacher(retain_fraction=0.0)


@pytest.mark.parametrize("kind", [CatastrophicForgettingK, ExactUnlearningK])
@pytest.mark.parametrize("settings", [{"k": 1}, {"k": 2}, {"modules": ("0",)}])
def test_other_blocks_stay(
    tiny_batch_norm_cnn: nn.Module,
    request_data: UnlearnData,
    kind: type[CatastrophicForgettingK],
    settings: dict[str, object],
) -> None:
    method = kind(epochs=2, batch_retain=16, weight_decay=0.1, **settings)
    names = {"k": {1: ("3",), 2: ("1", "3")}}.get("k", {}).get(settings.get("k"), ("0", "3"))
    assert set(method.trained(tiny_batch_norm_cnn)) == set(names)
    found = apply(method, tiny_batch_norm_cnn, request_data)
    for name, value in tiny_batch_norm_cnn.state_dict().items():
        assert torch.equal(found.state_dict()[name], value) == (name.split(".")[0] not in names), name


@pytest.mark.parametrize("kind", [CatastrophicForgettingK, ExactUnlearningK])
def test_averages_without_weights_stay_outside_of_the_trained_blocks(
    request_data: UnlearnData, kind: type[CatastrophicForgettingK]
) -> None:
    """A batch normalisation without weights of its own has nothing that says that it is not trained."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 2)]
    parts += [nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(4, 3)]
    network = nn.Sequential(*parts).eval()
    found = apply(kind(epochs=1, modules=("3",)), network, request_data)
    for name, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], value) == (name[0] not in "35"), name


def test_fresh_blocks_forget_where_they_were(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    near = apply(CatastrophicForgettingK(lr=1e-6, epochs=1), tiny_mlp, request_data)
    far = apply(ExactUnlearningK(lr=1e-6, epochs=1), tiny_mlp, request_data)
    head = tiny_mlp.get_parameter("head.weight")
    assert (near.get_parameter("head.weight") - head).abs().max() < 1e-4
    assert (far.get_parameter("head.weight") - head).abs().min() > 1e-4


def test_refuses_blocks_that_are_not_there(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    with pytest.raises(ValueError, match="k up to 2"):
        apply(CatastrophicForgettingK(k=3), tiny_mlp, request_data)
    with pytest.raises(ValueError, match="'absent'; the blocks are hidden, head"):
        apply(ExactUnlearningK(modules=("absent",)), tiny_mlp, request_data)


def test_builds_from_plain_settings() -> None:
    settings = {"lr": 0.1, "milestones": [2, 3], "augment": {"shift": 1}, "first_phase": "max"}
    expected = Scrub(lr=0.1, milestones=(2, 3), augment=Augmentation(shift=1), first_phase="max")
    assert build_method("scrub", settings) == expected


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("scrubb", {}, "did you mean scrub"),
        ("scrub", {"gama": 1}, "gama; did you mean gamma"),
        ("scrub", {"augment": {"shfit": 1}}, "augment.shfit"),
        ("scrub", {"lr": True}, "not a switch"),
        ("scrub", {"lr": -1.0}, "lr above 0"),
        ("scrub", {"first_phase": "both"}, "first_phase"),
    ],
)
def test_says_which_setting_is_wrong(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method(name, settings)
