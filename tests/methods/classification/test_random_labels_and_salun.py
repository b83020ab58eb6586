"""Random labels, and SalUn on top of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from small_requests import apply, flat, same_state
from torch import nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.random_labels import RandomLabels
from gen_unlearn.methods.classification.saliency_unlearning import SaliencyUnlearning
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.saliency import saliency, top_mask
from gen_unlearn.methods.unlearn_data import UnlearnData

SMALL = {"epochs": 2, "batch_forget": 5, "batch_retain": 16}


def test_labels_are_random_for_what_is_forgotten_alone(request_data: UnlearnData) -> None:
    method = RandomLabels(relabel="exclude_true", resample="epoch")
    rows = np.arange(12)
    forget = batch_of(request_data.forget, rows, epoch=1, step=2)
    retain = batch_of(request_data.retain, rows)
    assert np.array_equal(method.targets(request_data, retain, 0), request_data.retain.labels[rows])
    assert not (method.targets(request_data, forget, 0) == request_data.forget.labels).any()


@pytest.mark.parametrize(("resample", "step", "epoch"), [("step", 1, 1), ("epoch", 0, 1), ("never", 0, 0)])
def test_labels_are_drawn_again_when_asked(
    request_data: UnlearnData, resample: str, step: int, epoch: int
) -> None:
    method = RandomLabels(resample=resample)
    rows = np.arange(12)

    def drawn(epoch: int, step: int) -> np.ndarray:
        return method.targets(request_data, batch_of(request_data.forget, rows, epoch=epoch, step=step), 0)

    assert np.array_equal(drawn(0, 0), drawn(0, 1)) != bool(step)
    assert np.array_equal(drawn(0, 0), drawn(1, 0)) != bool(epoch)


def test_classes_to_forget_are_left_out(class_data: UnlearnData, request_data: UnlearnData) -> None:
    method = RandomLabels(relabel="exclude_classes")
    batch = batch_of(class_data.forget, np.arange(20))
    assert set(method.targets(class_data, batch, 0)) == {1, 2}
    with pytest.raises(ValueError, match="none of 3 classes"):
        method.targets(request_data, batch_of(request_data.forget, np.arange(3)), 0)


def test_schedules_differ(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    names = ("forget_then_retain", "mixed", "zipped")
    found = [apply(RandomLabels(schedule=name, **SMALL), tiny_mlp, request_data) for name in names]
    assert not any(same_state(found[i], found[i - 1]) for i in range(3))


def test_keeping_all_is_random_labels(tiny_batch_norm_cnn: nn.Module, request_data: UnlearnData) -> None:
    masked = apply(SaliencyUnlearning(keep=1.0, **SMALL), tiny_batch_norm_cnn, request_data)
    assert same_state(masked, apply(RandomLabels(**SMALL), tiny_batch_norm_cnn, request_data))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_keeping_nothing_is_the_original(
    tiny_batch_norm_cnn: nn.Module, request_data: UnlearnData, optimizer: str
) -> None:
    method = SaliencyUnlearning(
        keep=0.0, weight_decay=0.1, optimizer=optimizer, freeze_bn_stats=True, **SMALL
    )
    assert same_state(apply(method, tiny_batch_norm_cnn, request_data), tiny_batch_norm_cnn)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("kind", ["abs_sum", "sum_abs", "fisher"])
def test_moves_the_salient_weights_alone(
    tiny_mlp: nn.Module, request_data: UnlearnData, cpu: Accelerator, kind: str, scope: str
) -> None:
    method = SaliencyUnlearning(keep=0.3, weight_decay=0.1, saliency=kind, scope=scope, **SMALL)
    found = apply(method, tiny_mlp, request_data)
    scores = saliency(tiny_mlp, request_data.forget, kind, batch_size=5, accelerator=cpu, budget=Budget())
    mask = torch.cat([part.reshape(-1) for part in top_mask(scores, 0.3, scope).values()])
    assert torch.equal(flat(found) != flat(tiny_mlp), mask)
