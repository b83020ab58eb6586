"""Task arithmetic: back along the way that learning the images to forget goes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from gen_unlearn.methods.classification.task_arithmetic import TaskArithmetic
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.pixels import to_model_input


@pytest.fixture
def network() -> nn.Module:
    """A small network with batch normalisation."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


def test_one_full_step_is_scaled_gradient_ascent(request_data: UnlearnData, network: nn.Module) -> None:
    """One plain step on all images to forget: ``theta = theta0 + scale * lr * gradient``."""
    method = TaskArithmetic(lr=0.1, epochs=1, momentum=0.0, batch_forget=12, scale=0.7)
    found = unlearn(method, network, request_data, accelerator=Accelerator(cpu=True), seed=1).model
    forget = request_data.forget
    loss = F.cross_entropy(network(to_model_input(forget.images)), torch.from_numpy(forget.labels))
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    for before, gradient, after in zip(network.parameters(), gradients, found.parameters(), strict=True):
        torch.testing.assert_close(after, before + 0.7 * 0.1 * gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_buffers_stay_those_of_the_original(request_data: UnlearnData, network: nn.Module, mode: str) -> None:
    """Running statistics do not go back: only parameters are in the task vector."""
    method = TaskArithmetic(lr=0.1, epochs=2, bn_mode_forget="train" if mode == "train" else "eval")
    found = unlearn(method, network, request_data, accelerator=Accelerator(cpu=True), seed=1).model
    buffers = dict(found.named_buffers())
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_the_images_to_forget_are_answered_worse(request_data: UnlearnData, network: nn.Module) -> None:
    """Their loss rises, and the cost is one training on them alone."""
    done = unlearn(
        TaskArithmetic(lr=0.1, epochs=8, scale=1.0),
        network,
        request_data,
        accelerator=Accelerator(cpu=True),
        seed=1,
    )
    forget = request_data.forget
    inputs, labels = to_model_input(forget.images), torch.from_numpy(forget.labels)
    assert F.cross_entropy(done.model(inputs), labels) > F.cross_entropy(network(inputs), labels) + 0.1
    assert done.cost.backward_samples == 8 * len(forget)


def test_a_scale_of_zero_is_refused() -> None:
    """It would change nothing."""
    with pytest.raises(ValueError, match="scale"):
        TaskArithmetic(scale=0.0)
