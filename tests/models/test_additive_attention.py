"""Additive attention as one operation of a compiled graph: the same means and gradients as in the open."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from gen_unlearn.models.additive_attention import additive_attention

Attention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def inputs(keys: int = 9, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return queries, keys, values, a bias that masks some keys, and a weight."""
    draws = torch.Generator().manual_seed(keys)
    shapes = [(2, 5, 4), (2, keys, 4), (2, keys, 4), (1, 4)]
    queries, of_keys, values, weight = (torch.randn(*shape, generator=draws).to(dtype) for shape in shapes)
    bias = torch.zeros(2, 1, keys)
    bias[0, 0, 1], bias[1, 0, keys // 2 + 1 :] = -2, -torch.inf
    return [queries, of_keys, values, bias, weight]


def outcome(attention: Attention, tensors: list[Tensor], chunk: int) -> list[Tensor]:
    """Return the means, and the gradients of all but the bias."""
    leaves = [tensor.clone().requires_grad_(position != 3) for position, tensor in enumerate(tensors)]
    means = attention(*leaves, chunk)
    (means * torch.arange(4)).sum().backward()
    return [means.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize(
    ("backend", "chunk"),
    [("eager", 1), ("eager", 4), ("eager", 100), pytest.param("aot_eager", 4, marks=pytest.mark.slow)],
)
def test_a_compiled_graph_gives_the_same(backend: str, chunk: int) -> None:
    compiled = torch.compile(additive_attention, backend=backend, fullgraph=True)
    open_, closed = (outcome(attention, inputs(), chunk) for attention in (additive_attention, compiled))
    assert len(open_) == len(closed) == 5
    for one, other in zip(open_, closed, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_a_compiled_graph_gives_the_same_in_half_precision() -> None:
    compiled = torch.compile(additive_attention, backend="eager", fullgraph=True)
    halves = inputs(dtype=torch.bfloat16)
    exact = outcome(additive_attention, [tensor.float() for tensor in halves], 4)
    for half, whole in zip(outcome(compiled, halves, 4), exact, strict=True):
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), whole, rtol=0.05, atol=0.05)


def test_one_graph_serves_any_number_of_keys() -> None:
    compiled = torch.compile(additive_attention, backend="eager", fullgraph=True, dynamic=True)
    torch._dynamo.utils.counters.clear()
    for keys in (9, 30, 5):
        for one, other in zip(
            outcome(additive_attention, inputs(keys), 4), outcome(compiled, inputs(keys), 4), strict=True
        ):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_the_operation_keeps_what_it_promises_a_compiler() -> None:
    tensors = [tensor.requires_grad_(position != 3) for position, tensor in enumerate(inputs())]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.gen_unlearn.additive_attention.default, (*tensors, 4), test_utils=checks)
