"""Fusion: queries attend over the tokens of retrieved exemplars.

The semi-parametric model of "Designing to Forget" (arXiv 2603.22870) depends on its training images
through this block alone. Exemplars come in groups (one per class, say); each query attends to one group.
A `FusionPlan` says which query goes with which exemplars. It is worked out on the host, once, from labels
that are known there, so the forward pass holds no loop over samples and never waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen_unlearn.models.additive_attention import additive_attention

NULL_GROUP = -1
"""Group of a query that sees no exemplar: its fusion result is the learned null value."""


class ExemplarTokens(NamedTuple):
    """Keys and values, each ``(exemplars, heads, tokens, head_dim)``; with pixel fusion also the images."""

    keys: Tensor
    values: Tensor
    pixels: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> ExemplarTokens:
        """Apply `change` to every tensor, once to keys and values that are one and the same."""
        keys, pixels = change(self.keys), None if self.pixels is None else change(self.pixels)
        return ExemplarTokens(keys, keys if self.values is self.keys else change(self.values), pixels)


class FusionPlan(NamedTuple):
    """Which query attends to which exemplars, as index tensors.

    Queries of one group lie side by side in the rows of a grid of ``rows * width`` cells, so that a group's
    keys are read once for all of them. A large group may take several rows.

    Attributes:
        members: int64 ``(rows, members)``, the exemplars of each row; padding points at exemplar 0.
        present: bool ``(rows, members)``, false at padding.
        slots: int64 ``(rows, width)``, the query in each cell; padding points at query 0.
        cells: int64 ``(queries,)``, the cell of each query; ``rows * width`` stands for the null value.
    """

    members: Tensor
    present: Tensor
    slots: Tensor
    cells: Tensor

    def to(self, device: torch.device | str) -> FusionPlan:
        """Move the four tensors to `device`."""
        return FusionPlan(*(tensor.to(device, non_blocking=True) for tensor in self))


def plan_fusion(group_of_query: Sequence[int] | np.ndarray, members: Sequence[np.ndarray]) -> FusionPlan:
    """Lay queries out in rows, by the group of exemplars that they attend to.

    Args:
        group_of_query: for each query an index into `members`, or `NULL_GROUP`.
        members: for each group the indices of its exemplars. A query of an empty group gets the null value.

    Returns:
        A plan on the CPU. It has at least one row when there is any exemplar at all, so that every parameter
        of the fusion takes part in every training step.
    """
    groups = np.asarray(group_of_query, dtype=np.int64)
    if groups.size and (groups.min() < NULL_GROUP or groups.max() >= len(members)):
        raise ValueError(f"expected groups from {NULL_GROUP} to {len(members) - 1}, got {groups.tolist()}")
    occupied = [group for group in np.unique(groups) if group != NULL_GROUP and len(members[group])]
    queries = [np.flatnonzero(groups == group) for group in occupied]
    if not occupied:
        occupied = [group for group, rows in enumerate(members) if len(rows)][:1]
        queries = [np.empty(0, dtype=np.int64)] * len(occupied)

    largest = max((len(rows) for rows in queries), default=0)
    average = math.ceil(sum(len(rows) for rows in queries) / max(len(queries), 1))
    width = max(1, min(largest, 2 * average))
    rows = [
        (group, chunk)
        for group, of_group in zip(occupied, queries, strict=True)
        for chunk in (np.split(of_group, range(width, len(of_group), width)))
    ]
    depth = max((len(members[group]) for group, _ in rows), default=0)
    member_index = np.zeros((len(rows), depth), dtype=np.int64)
    present = np.zeros((len(rows), depth), dtype=bool)
    slots = np.zeros((len(rows), width), dtype=np.int64)
    cells = np.full(len(groups), len(rows) * width, dtype=np.int64)
    for row, (group, chunk) in enumerate(rows):
        member_index[row, : len(members[group])] = members[group]
        present[row, : len(members[group])] = True
        slots[row, : len(chunk)] = chunk
        cells[chunk] = row * width + np.arange(len(chunk))
    return FusionPlan(*(torch.from_numpy(array) for array in (member_index, present, slots, cells)))


class FusionContext(NamedTuple):
    """What the queries of one batch attend to, ready for use at every denoising step.

    Attributes:
        keys: ``(rows, heads, 1 + members * tokens, head_dim)``, the null key first.
        values: like `keys`.
        bias: ``(rows, 1, 1, 1 + members * tokens)``, added to the logits.
        slots: see `FusionPlan`.
        cells: see `FusionPlan`.
        present: see `FusionPlan`.
        pixels: exemplars of each row, ``(rows, members, channels, height, width)``; for pixel fusion.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor
    slots: Tensor
    cells: Tensor
    present: Tensor
    pixels: Tensor | None = None


class FusionBlock(nn.Module):
    """Fuse exemplars into query features by multi-head dot-product attention.

    With `m` exemplar tokens ``(k_j, v_j)`` and a learned null token ``(k_0, v_0)`` a query `q` receives::

        softmax([q·k_0 / sqrt(d),  q·k_j / sqrt(d) - log m  for j = 1..m]) · [v_0, v_1, ..., v_m]

    The result has the shape of the queries. It does not depend on the order of the exemplars, nor on whether
    the whole set is repeated; without exemplars it is `v_0`.

    Args:
        channels: channels of the feature map, a multiple of `num_heads`.
        num_heads: attention heads.
        norm_groups: groups of the group normalisation before the projections.
        residual: add the result to the features instead of putting it in their place.
    """

    def __init__(
        self, channels: int, num_heads: int = 4, norm_groups: int = 32, residual: bool = False
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"channels ({channels}) must be a multiple of num_heads ({num_heads})")
        self.num_heads = num_heads
        self.residual = residual
        self.norm = nn.GroupNorm(norm_groups, channels)
        self.to_query = nn.Linear(channels, channels)
        self.to_value = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)
        self.null_key = nn.Parameter(torch.zeros(num_heads, 1, channels // num_heads))
        self.null_value = nn.Parameter(torch.zeros(num_heads, 1, channels // num_heads))
        self._add_scoring(channels)

    def _add_scoring(self, channels: int) -> None:
        """Add the parameters that score a query against a key."""
        self.to_key = nn.Linear(channels, channels)

    def encode(self, features: Tensor) -> ExemplarTokens:
        """Project the feature maps of exemplars, ``(exemplars, channels, height, width)``, to tokens."""
        tokens = self._tokens(features)
        return ExemplarTokens(self._heads(self.to_key(tokens)), self._heads(self.to_value(tokens)))

    def context(self, tokens: ExemplarTokens, plan: FusionPlan) -> FusionContext:
        """Gather the tokens of each row of `plan` and append the null token; once per batch of queries."""
        keys = self._gather(tokens.keys, plan, self.null_key)
        values = keys if tokens.values is tokens.keys else self._gather(tokens.values, plan, self.null_value)
        valid = plan.present.repeat_interleave(tokens.keys.shape[2], dim=1)
        count = valid.sum(dim=1, keepdim=True).clamp(min=1)
        bias = torch.where(valid, -count.float().log(), -torch.inf)
        bias = F.pad(bias, (1, 0))[:, None, None, :]
        pixels = None if tokens.pixels is None else tokens.pixels[plan.members]
        return FusionContext(keys, values, bias, plan.slots, plan.cells, plan.present, pixels)

    def forward(self, features: Tensor, context: FusionContext | None) -> Tensor:
        """Fuse exemplars into ``(batch, channels, height, width)`` features; `None` means no exemplar."""
        batch, channels, height, width = features.shape
        null = self.null_value.reshape(1, 1, channels).expand(1, height * width, channels)
        if context is None:
            fused = self.to_out(null).expand(batch, -1, -1)
        else:
            rows, cells = context.slots.shape
            queries = self.to_query(self._tokens(features)).index_select(0, context.slots.reshape(-1))
            queries = self._heads(queries.reshape(rows, cells * height * width, channels))
            attended = self._attend(queries, context).transpose(1, 2)
            attended = attended.reshape(rows * cells, height * width, channels)
            fused = torch.cat([attended, null.to(attended.dtype)]).index_select(0, context.cells)
            fused = self.to_out(fused)
        fused = fused.transpose(1, 2).reshape(batch, channels, height, width)
        return features + fused if self.residual else fused

    def _attend(self, queries: Tensor, context: FusionContext) -> Tensor:
        """Attend with queries of shape ``(rows, heads, queries, head_dim)``; same shape out."""
        dtype = queries.dtype
        return F.scaled_dot_product_attention(
            queries, context.keys.to(dtype), context.values.to(dtype), attn_mask=context.bias.to(dtype)
        )

    def _tokens(self, features: Tensor) -> Tensor:
        """Normalise feature maps and turn them into ``(batch, height * width, channels)``."""
        # Contiguous, as torch 2.6 crashes in the backward pass of a channels-last group normalisation
        # whose input needs no gradient, which is what exemplars are.
        return self.norm(features.contiguous()).flatten(2).transpose(1, 2)

    def _heads(self, tokens: Tensor) -> Tensor:
        """Split ``(batch, tokens, channels)`` into ``(batch, heads, tokens, head_dim)``."""
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    @staticmethod
    def _gather(tokens: Tensor, plan: FusionPlan, null: Tensor) -> Tensor:
        """Gather ``(rows, heads, 1 + members * tokens, head_dim)``, the null token first."""
        (rows, members), (_, heads, each, width) = plan.members.shape, tokens.shape
        picked = tokens.index_select(0, plan.members.reshape(-1)).unflatten(0, (rows, members))
        gathered = tokens.new_empty(rows, heads, 1 + members * each, width)
        gathered[:, :, :1] = null.to(tokens.dtype)
        gathered[:, :, 1:].unflatten(2, (members, each)).copy_(picked.transpose(1, 2))
        return gathered


class AdditiveFusionBlock(FusionBlock):
    """Fuse exemplars by additive attention, as in the reference implementation of arXiv 2603.22870.

    A query feature `x` scores an exemplar feature `s` by ``v·relu(A x + B s + b)`` and receives the weighted
    mean of ``B s``: keys and values are the same tokens, with one head; the null token and ``-log m`` are
    those of `FusionBlock`. Memory grows with the chunk and not with the number of exemplars; the result is
    that of the dense formula.

    Args:
        channels: channels of the feature map.
        norm_groups: groups of the group normalisation before the projections.
        residual: add the result to the features instead of putting it in their place.
        chunk: keys that are scored at once.
    """

    def __init__(
        self, channels: int, norm_groups: int = 32, residual: bool = False, chunk: int = 128
    ) -> None:
        super().__init__(channels, num_heads=1, norm_groups=norm_groups, residual=residual)
        self.chunk = chunk

    def _add_scoring(self, channels: int) -> None:
        """Add the vector that turns a hidden layer into a score."""
        self.to_score = nn.Linear(channels, 1, bias=False)

    def encode(self, features: Tensor) -> ExemplarTokens:
        """Project the feature maps of exemplars; one tensor serves as keys and as values."""
        projected = self._heads(self.to_value(self._tokens(features)))
        return ExemplarTokens(projected, projected)

    def context(self, tokens: ExemplarTokens, plan: FusionPlan) -> FusionContext:
        """Gather the tokens of each row of `plan`; the null key and the null value differ."""
        context = super().context(tokens._replace(keys=tokens.values), plan)
        null = self.null_value.to(tokens.values.dtype).expand(context.keys.shape[0], -1, -1, -1)
        return context._replace(values=torch.cat([null, context.keys[:, :, 1:]], dim=2))

    def _attend(self, queries: Tensor, context: FusionContext) -> Tensor:
        fused = additive_attention(
            queries.squeeze(1),
            context.keys.squeeze(1),
            context.values.squeeze(1),
            context.bias.squeeze(1),
            self.to_score.weight,
            self.chunk,
        )
        return fused.unsqueeze(1)
