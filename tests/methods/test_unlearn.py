"""The checked way to apply a method."""

from __future__ import annotations

import copy

import pytest
from accelerate import Accelerator
from small_requests import same_state
from torch import nn

from gen_unlearn.methods.classification.fine_tune import FineTune
from gen_unlearn.methods.classification.saliency_unlearning import SaliencyUnlearning
from gen_unlearn.methods.method import unlearn
from gen_unlearn.methods.unlearn_data import UnlearnData


def test_new_averages_alone_are_not_unlearning(
    tiny_batch_norm_cnn: nn.Module, request_data: UnlearnData
) -> None:
    """Batch normalisation counts its batches, so that some state differs whatever the weights do."""
    method = SaliencyUnlearning(keep=0.0, epochs=1)
    with pytest.raises(ValueError, match="did not move a single weight"):
        unlearn(method, tiny_batch_norm_cnn, request_data, accelerator=Accelerator(cpu=True), seed=0)


def test_the_result_has_the_flags_of_the_original_and_no_gradients(
    tiny_batch_norm_cnn: nn.Module, request_data: UnlearnData
) -> None:
    original = copy.deepcopy(tiny_batch_norm_cnn)
    original[0].requires_grad_(False)
    original[1].train()
    found = unlearn(FineTune(epochs=1), original, request_data, accelerator=Accelerator(cpu=True), seed=0)
    assert not same_state(found.model, original)
    needed = [parameter.requires_grad for parameter in found.model.parameters()]
    assert needed == [parameter.requires_grad for parameter in original.parameters()]
    modes = [module.training for module in found.model.modules()]
    assert modes == [module.training for module in original.modules()]
    assert all(parameter.grad is None for parameter in found.model.parameters())
