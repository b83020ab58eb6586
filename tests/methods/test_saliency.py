"""The importance of weights, and masks with an exact count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.loop import batch_of
from gen_unlearn.methods.saliency import SaliencyKind, saliency, top_mask
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.training.classification_batches import Augmentation


def measure(
    model: nn.Module, data: UnlearnData, kind: SaliencyKind, batch_size: int, cpu: Accelerator
) -> dict[str, torch.Tensor]:
    return saliency(model, data.forget, kind, batch_size=batch_size, accelerator=cpu, budget=Budget())


def gradients_of_images(model: nn.Module, data: UnlearnData) -> dict[str, torch.Tensor]:
    found: dict[str, list[torch.Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for row in range(len(data.forget)):
        batch = batch_of(data.forget, torch.tensor([row]).numpy())
        loss = F.cross_entropy(model(batch.inputs), batch.labels)
        for name, gradient in zip(found, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            found[name].append(gradient)
    return {name: torch.stack(gradients) for name, gradients in found.items()}


def test_matches_an_explicit_loop(
    tiny_batch_norm_cnn: nn.Module, request_data: UnlearnData, cpu: Accelerator
) -> None:
    single = gradients_of_images(tiny_batch_norm_cnn, request_data)
    for batch_size in (5, 12):
        found = measure(tiny_batch_norm_cnn, request_data, "abs_sum", batch_size, cpu)
        for name, gradients in single.items():
            assert torch.allclose(found[name], gradients.sum(0).abs(), atol=1e-5)
    found = measure(tiny_batch_norm_cnn, request_data, "sum_abs", 1, cpu)
    for name, gradients in single.items():
        assert torch.allclose(found[name], gradients.abs().sum(0), atol=1e-5)
    found = measure(tiny_batch_norm_cnn, request_data, "fisher", 5, cpu)
    for name, gradients in single.items():
        assert torch.allclose(found[name].float(), gradients.square().mean(0), atol=1e-5)


def test_leaves_the_model_and_counts(
    tiny_mlp: nn.Module, request_data: UnlearnData, cpu: Accelerator
) -> None:
    budget = Budget()
    tiny_mlp.train()
    saliency(tiny_mlp, request_data.forget, "abs_sum", batch_size=5, accelerator=cpu, budget=budget)
    assert tiny_mlp.training
    tiny_mlp.eval()
    assert (budget.forward_samples, budget.backward_samples) == (12, 12)
    assert all(parameter.grad is None for parameter in tiny_mlp.parameters())


def test_augments_if_asked(tiny_mlp: nn.Module, request_data: UnlearnData, cpu: Accelerator) -> None:
    def shifted(seed: int) -> torch.Tensor:
        found = saliency(
            tiny_mlp,
            request_data.forget,
            "abs_sum",
            batch_size=5,
            accelerator=cpu,
            budget=Budget(),
            augment=Augmentation(shift=1),
            seed=seed,
        )
        return found["head.weight"]

    plain = measure(tiny_mlp, request_data, "abs_sum", 5, cpu)["head.weight"]
    assert torch.equal(shifted(0), shifted(0))
    assert not torch.equal(shifted(0), shifted(1))
    assert not torch.equal(shifted(0), plain)
    with pytest.raises(ValueError, match="no changes of images for fisher"):
        saliency(
            tiny_mlp,
            request_data.forget,
            "fisher",
            batch_size=5,
            accelerator=cpu,
            budget=Budget(),
            augment=Augmentation(shift=1),
        )


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.33, 0.5, 0.999, 1.0])
def test_marks_the_exact_count(keep: float) -> None:
    scores = {"a": torch.randn(7, 5).abs(), "b": torch.zeros(9), "c": torch.randn(6).abs()}
    marked = top_mask(scores, keep)
    assert sum(int(mask.sum()) for mask in marked.values()) == int(keep * 50 + 0.5)
    assert all(marked[name].shape == score.shape for name, score in scores.items())
    layers = top_mask(scores, keep, "layer")
    assert [int(mask.sum()) for mask in layers.values()] == [int(keep * n + 0.5) for n in (35, 9, 6)]
    chosen = torch.cat([scores[name][marked[name]] for name in scores])
    left = torch.cat([scores[name][~marked[name]] for name in scores])
    assert not len(chosen) or not len(left) or chosen.min() >= left.max()


def test_equal_scores_go_by_their_place() -> None:
    scores = {"a": torch.tensor([[1.0, 2.0], [1.0, 1.0]]), "b": torch.tensor([1.0, 3.0])}
    marked = top_mask(scores, 4 / 6)
    assert marked["a"].tolist() == [[True, True], [True, False]]
    assert marked["b"].tolist() == [False, True]


@pytest.mark.parametrize(("keep", "score"), [(-0.1, 1.0), (1.1, 1.0), (0.5, float("nan"))])
def test_refuses_what_cannot_be_ranked(keep: float, score: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        top_mask({"a": torch.tensor([score, 0.0])}, keep)
