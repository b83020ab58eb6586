"""Fine-tuning, ascent, NegGrad+ and L1-sparse against steps by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_requests import apply, flat, same_state
from torch import nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.classification.fine_tune import FineTune
from gen_unlearn.methods.classification.gradient_ascent import GradientAscent
from gen_unlearn.methods.classification.l1_sparse import L1Sparse
from gen_unlearn.methods.classification.negative_gradient import NegGradPlus
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.unlearn_data import UnlearnData


def gradient(model: nn.Module, images: IndexedImages) -> torch.Tensor:
    batch = batch_of(images, np.arange(len(images)))
    loss = F.cross_entropy(model(batch.inputs), batch.labels)
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([part.double().reshape(-1) for part in found])


def test_one_full_step_is_the_gradient(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    theta, retain, forget = (
        flat(tiny_mlp),
        gradient(tiny_mlp, request_data.retain),
        gradient(tiny_mlp, request_data.forget),
    )
    tuned = apply(FineTune(lr=0.1, epochs=1), tiny_mlp, request_data)
    assert torch.allclose(flat(tuned), theta - 0.1 * retain, atol=1e-7)
    ascended = apply(GradientAscent(lr=0.1, epochs=1), tiny_mlp, request_data)
    assert torch.allclose(flat(ascended), theta + 0.1 * forget, atol=1e-7)
    both = apply(NegGradPlus(lr=0.1, epochs=1, alpha=0.7), tiny_mlp, request_data)
    assert torch.allclose(flat(both), theta - 0.1 * (0.7 * retain - 0.3 * forget), atol=1e-7)
    sparse = apply(L1Sparse(lr=0.1, epochs=1, alpha=0.01), tiny_mlp, request_data)
    assert torch.allclose(flat(sparse), theta - 0.1 * (retain + 0.01 * theta.sign()), atol=1e-7)
    moved = theta - 0.1 * retain
    shrunk = moved.sign() * (moved.abs() - 0.1 * 0.5).clamp(min=0)
    proximal = L1Sparse(lr=0.1, epochs=1, alpha=0.5, mode="proximal")
    assert torch.allclose(flat(apply(proximal, tiny_mlp, request_data)), shrunk, atol=1e-7)


def test_without_their_own_part_they_are_fine_tuning(tiny_mlp: nn.Module, request_data: UnlearnData) -> None:
    tuned = apply(FineTune(epochs=2, batch_retain=16), tiny_mlp, request_data)
    plus = apply(NegGradPlus(epochs=2, batch_retain=16, alpha=1.0), tiny_mlp, request_data)
    assert same_state(plus, tuned)
    for mode in ("subgradient", "proximal"):
        sparse = L1Sparse(epochs=2, batch_retain=16, alpha=0.0, mode=mode)
        assert same_state(apply(sparse, tiny_mlp, request_data), tuned)


def test_the_penalty_falls_to_the_tail() -> None:
    method = L1Sparse(alpha=0.2, epochs=6, tail_epochs=2)
    assert [method.gamma(e) for e in range(6)] == pytest.approx([0.2, 0.15, 0.1, 0.05, 0, 0])
    with pytest.raises(ValueError, match="tail_epochs from 0 to 5"):
        L1Sparse(epochs=6, tail_epochs=6)


def test_only_soft_thresholding_gives_zeros(
    tiny_batch_norm_cnn: nn.Module, request_data: UnlearnData
) -> None:
    settings = {"alpha": 0.5, "lr": 0.1, "epochs": 3, "batch_retain": 16}
    soft = apply(L1Sparse(mode="proximal", **settings), tiny_batch_norm_cnn, request_data)
    sub = apply(L1Sparse(mode="subgradient", **settings), tiny_batch_norm_cnn, request_data)
    assert (flat(soft) == 0).sum() > 20
    assert (flat(sub) == 0).sum() == 0
    spared = L1Sparse(mode="proximal", penalise_bn_bias=False, **settings)
    found = apply(spared, tiny_batch_norm_cnn, request_data)
    assert (found.get_submodule("0.1").weight != 0).all()
    assert (found.get_submodule("3").weight == 0).any()
