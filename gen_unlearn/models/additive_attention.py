"""Additive attention over chunks of keys, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def additive_attention(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, weight: Tensor, chunk: int
) -> Tensor:
    """Return the means of values weighted by ``softmax_j(weight · relu(q + k_j) + bias_j)``.

    The softmax runs over chunks of keys with a running maximum (Milakov and Gimelshein 2018); the backward
    pass scores them again.

    Args:
        queries: ``(rows, queries, channels)``.
        keys: ``(rows, keys, channels)``, at least one.
        values: like `keys`.
        bias: float32 ``(rows, 1, keys)``, without gradient.
        weight: ``(1, channels)``.
        chunk: keys that are scored at once.

    Returns:
        One mean for each query, like `queries`.
    """
    if torch.compiler.is_compiling():
        # One operation: the compiler would unroll the loop, anew for every number of keys.
        means, _ = _compiled_attention(queries, keys, values, bias, weight.to(queries.dtype), chunk)
        return means
    weighted, total, _ = _stream(queries, keys, values, bias, weight, chunk)
    return (weighted / total).to(queries.dtype)


def _stream(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, weight: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted sum of the softmax, its normaliser and its maximum, all float32."""
    maximum = queries.new_full((*queries.shape[:2], 1), -torch.inf, dtype=torch.float32)
    total = torch.zeros_like(maximum)
    weighted = torch.zeros_like(queries, dtype=torch.float32)
    for span in _spans(keys, chunk):
        arguments = queries, keys[:, span], values[:, span], bias[..., span], weight, maximum, total, weighted
        if torch.is_grad_enabled():
            maximum, total, weighted = checkpoint(
                _add_chunk, *arguments, use_reentrant=False, preserve_rng_state=False
            )
        else:
            maximum, total, weighted = _add_chunk(*arguments)
    return weighted, total, maximum


def _spans(keys: Tensor, chunk: int) -> Iterator[slice]:
    for start in range(0, keys.shape[1], chunk):
        yield slice(start, start + chunk)


def _add_chunk(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor,
    weight: Tensor,
    maximum: Tensor,
    total: Tensor,
    weighted: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add one chunk of keys to the running maximum, normaliser and weighted sum of the softmax."""
    hidden = F.relu(queries[:, :, None, :] + keys[:, None, :, :], inplace=True)
    logits = F.linear(hidden, weight).squeeze(-1).float() + bias
    new_maximum = torch.maximum(maximum, logits.detach().amax(dim=-1, keepdim=True))
    weights = (logits - new_maximum).exp()
    rescale = (maximum - new_maximum).exp()
    total = total * rescale + weights.sum(dim=-1, keepdim=True)
    weighted = weighted * rescale + weights @ values.float()
    return new_maximum, total, weighted


@torch.library.custom_op("gen_unlearn::additive_attention", mutates_args=())
def _compiled_attention(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, weight: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return the means, and the logarithm of what the softmax divides by, ``(rows, queries, 1)``."""
    weighted, total, maximum = _stream(queries, keys, values, bias, weight, chunk)
    return (weighted / total).to(queries.dtype).contiguous(), total.log() + maximum


@_compiled_attention.register_fake
def _(queries: Tensor, *_rest: Any) -> tuple[Tensor, Tensor]:
    return queries.new_empty(queries.shape), queries.new_empty((*queries.shape[:2], 1), dtype=torch.float32)


@torch.library.custom_op("gen_unlearn::additive_attention_gradients", mutates_args=())
def _compiled_gradients(
    gradient: Tensor,
    means: Tensor,
    normaliser: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor,
    weight: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys, values and weight from that of the means."""
    gradient = gradient.float()
    of_mean = (gradient * means.float()).sum(dim=-1, keepdim=True)
    for_queries = queries.new_zeros(queries.shape, dtype=torch.float32)
    for_weight = weight.new_zeros(weight.shape, dtype=torch.float32)
    for_keys, for_values = [], []
    for span in _spans(keys, chunk):
        hidden = F.relu(queries[:, :, None, :] + keys[:, None, span, :], inplace=True)
        logits = F.linear(hidden, weight).squeeze(-1).float() + bias[..., span]
        weights = (logits - normaliser).exp()
        for_logits = weights * (gradient @ values[:, span].float().mT - of_mean)
        for_hidden = torch.where(hidden > 0, for_logits[..., None] * weight.float(), 0)
        for_queries += for_hidden.sum(dim=2)
        for_keys.append(for_hidden.sum(dim=1))
        for_values.append(weights.mT @ gradient)
        for_weight += (for_logits[..., None] * hidden).sum(dim=(0, 1, 2))
    return (
        for_queries.to(queries.dtype),
        torch.cat(for_keys, dim=1).to(keys.dtype),
        torch.cat(for_values, dim=1).to(values.dtype),
        for_weight.to(weight.dtype),
    )


@_compiled_gradients.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    _, _, _, queries, keys, values, _, weight, _ = arguments
    return tuple(part.new_empty(part.shape) for part in (queries, keys, values, weight))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.chunk = inputs
    ctx.save_for_backward(*output, *tensors)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    queries, keys, values, weight = _compiled_gradients(gradient, *ctx.saved_tensors, ctx.chunk)
    return queries, keys, values, None, weight, None


_compiled_attention.register_autograd(_differentiate, setup_context=_remember)
