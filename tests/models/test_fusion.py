"""Laws of exemplar fusion, and its agreement with the formula worked out query by query."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gen_unlearn.models.fusion import (
    NULL_GROUP,
    AdditiveFusionBlock,
    ExemplarTokens,
    FusionBlock,
    FusionPlan,
    plan_fusion,
)

CHANNELS, HEIGHT, WIDTH = 8, 2, 3
Groups = list[np.ndarray]


def make_block(kind: str, **options: int | bool) -> FusionBlock:
    """Build a block in which no parameter is zero or one."""
    torch.manual_seed(1)
    block: FusionBlock
    if kind == "additive":
        block = AdditiveFusionBlock(CHANNELS, norm_groups=2, **{"chunk": 5, **options})
    else:
        block = FusionBlock(CHANNELS, num_heads=2, norm_groups=2, **options)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.7)
    return block


@pytest.fixture(params=["dot-product", "additive"])
def block(request: pytest.FixtureRequest) -> FusionBlock:
    return make_block(request.param)


def maps(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def fuse(block: FusionBlock, queries: Tensor, exemplars: Tensor, plan: FusionPlan) -> Tensor:
    return block(queries, block.context(block.encode(exemplars), plan))


def reference(
    block: FusionBlock, queries: Tensor, exemplars: Tensor, groups: list[int], members: Groups
) -> Tensor:
    """Work out the docstrings' formulas for one query, one position and one head at a time."""
    results = []
    heads = 1 if isinstance(block, AdditiveFusionBlock) else 2
    size = CHANNELS // heads
    for query, group in zip(queries, groups, strict=True):
        rows = [] if group == NULL_GROUP else members[group].tolist()
        features = block.norm(query[None])[0].flatten(1).T
        seen = [block.norm(exemplars[row : row + 1])[0].flatten(1).T for row in rows]
        tokens = torch.cat(seen) if seen else torch.zeros(0, CHANNELS)
        positions = []
        for position in block.to_query(features):
            parts = []
            for head in range(heads):
                span = slice(head * size, (head + 1) * size)
                q, values = position[span], block.to_value(tokens)[:, span]
                values = torch.cat([block.null_value[head], values])
                if isinstance(block, AdditiveFusionBlock):
                    keys = torch.cat([block.null_key[head], values[1:]])
                    logits = torch.stack([block.to_score(torch.relu(q + key))[0] for key in keys])
                else:
                    keys = torch.cat([block.null_key[head], block.to_key(tokens)[:, span]])
                    logits = torch.stack([(q * key).sum() / math.sqrt(size) for key in keys])
                length = torch.tensor([0.0] + [math.log(max(len(tokens), 1))] * len(tokens))
                parts.append(torch.softmax(logits - length, dim=0) @ values)
            positions.append(block.to_out(torch.cat(parts)))
        results.append(torch.stack(positions).T.reshape(CHANNELS, HEIGHT, WIDTH))
    fused = torch.stack(results)
    return queries + fused if block.residual else fused


def random_grouping(seed: int, queries: int, exemplars: int) -> tuple[list[int], Groups]:
    """Draw groups of very different sizes, some empty, that may share exemplars; some queries have none."""
    draws = np.random.default_rng(seed)
    count = int(draws.integers(1, 6))
    members = [
        draws.choice(exemplars, draws.choice([0, 1, 2, exemplars]), replace=False).astype(np.int64)
        for _ in range(count)
    ]
    weights = draws.dirichlet(np.full(count + 1, 0.3))
    return (draws.choice(count + 1, queries, p=weights) - 1).tolist(), members


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["dot-product", "additive"])
def test_grid_equals_formula_query_by_query(kind: str, seed: int, residual: bool) -> None:
    block = make_block(kind, residual=residual)
    groups, members = random_grouping(seed, queries=9, exemplars=5)
    queries, exemplars = maps(9), maps(5, seed=1)
    with torch.no_grad():
        fused = fuse(block, queries, exemplars, plan_fusion(groups, members))
        torch.testing.assert_close(
            fused, reference(block, queries, exemplars, groups, members), rtol=1e-5, atol=1e-5
        )


def test_order_of_exemplars_does_not_matter(block: FusionBlock) -> None:
    queries, exemplars, order = maps(2), maps(6, seed=1), np.random.default_rng(0).permutation(6)
    with torch.no_grad():
        straight = fuse(block, queries, exemplars, plan_fusion([0, 0], [np.arange(6)]))
        by_plan = fuse(block, queries, exemplars, plan_fusion([0, 0], [order]))
        by_rows = fuse(block, queries, exemplars[order], plan_fusion([0, 0], [np.arange(6)]))
    torch.testing.assert_close(by_plan, straight, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_rows, straight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("times", [2, 7])
def test_repeating_the_whole_set_does_not_matter(block: FusionBlock, times: int) -> None:
    queries, exemplars = maps(2), maps(3, seed=1)
    with torch.no_grad():
        once = fuse(block, queries, exemplars, plan_fusion([0, 0], [np.arange(3)]))
        often = fuse(block, queries, exemplars, plan_fusion([0, 0], [np.tile(np.arange(3), times)]))
        partly = fuse(block, queries, exemplars, plan_fusion([0, 0], [np.array([0, 0, 0, 1, 2])]))
    torch.testing.assert_close(often, once, rtol=0, atol=1e-5)
    assert (partly - once).abs().max() > 1e-3


def test_masked_exemplars_equal_absent_ones(block: FusionBlock) -> None:
    queries, exemplars = maps(2), maps(6, seed=1)
    plan = plan_fusion([0, 0], [np.array([1, 2])])
    padding = torch.tensor([[0, 5, 3]])
    padded = plan._replace(
        members=torch.cat([padding, plan.members], dim=1),
        present=torch.cat([torch.zeros_like(padding, dtype=torch.bool), plan.present], dim=1),
    )
    with torch.no_grad():
        absent, masked = fuse(block, queries, exemplars, plan), fuse(block, queries, exemplars, padded)
    torch.testing.assert_close(masked, absent, rtol=0, atol=1e-6)


def test_without_exemplars_the_result_is_the_null_value(block: FusionBlock) -> None:
    queries, exemplars = maps(3), maps(4, seed=1)
    null = block.to_out(block.null_value.reshape(1, CHANNELS))[0, :, None, None].expand_as(queries)
    no_exemplar = plan_fusion([0, NULL_GROUP, 0], [np.empty(0, dtype=np.int64)])
    no_group = plan_fusion([NULL_GROUP] * 3, [np.arange(4)])
    with torch.no_grad():
        result = block(queries, None)
        torch.testing.assert_close(result, null, rtol=0, atol=1e-6)
        assert torch.equal(result, result[:1, :, :1, :1].expand_as(result))
        for plan in (no_exemplar, no_group):
            torch.testing.assert_close(fuse(block, queries, exemplars, plan), null, rtol=0, atol=1e-6)
        nothing = plan_fusion([NULL_GROUP] * 3, [])
        torch.testing.assert_close(fuse(block, queries, exemplars[:0], nothing), null, rtol=0, atol=1e-6)


def test_query_does_not_depend_on_the_others(block: FusionBlock) -> None:
    queries, exemplars = maps(7), maps(5, seed=1)
    groups, members = [0, 0, 1, NULL_GROUP, 0, 0, 1], [np.arange(4), np.array([4])]
    with torch.no_grad():
        together = fuse(block, queries, exemplars, plan_fusion(groups, members))
        for row, group in enumerate(groups):
            alone = fuse(block, queries[row : row + 1], exemplars, plan_fusion([group], members))
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 7, 1000])
def test_additive_streaming_and_its_gradients_equal_the_dense_formula(chunk: int) -> None:
    block = make_block("additive", chunk=chunk)
    with torch.no_grad():
        block.null_key.fill_(-3)  # Later keys score higher: the running maximum has to move.
        block.to_score.weight.abs_()
    groups, members = [0, 1, 0, NULL_GROUP], [np.array([0, 2, 3]), np.array([1])]
    gradients = []
    outputs = []
    for compute in ("stream", "dense"):
        block.zero_grad()
        queries, exemplars = maps(4).requires_grad_(), maps(4, seed=1).requires_grad_()
        if compute == "stream":
            output = fuse(block, queries, exemplars, plan_fusion(groups, members))
        else:
            output = reference(block, queries, exemplars, groups, members)
        (output * maps(4, seed=2)).sum().backward()
        leaves = [queries, exemplars, *block.parameters()]
        outputs.append(output.detach())
        gradients.append([leaf.grad.clone() for leaf in leaves if leaf.grad is not None])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-6, atol=1e-6)
    assert len(gradients[0]) == len(gradients[1]) == 2 + len(list(block.parameters()))
    for streamed, dense in zip(*gradients, strict=True):
        torch.testing.assert_close(streamed, dense, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        silent = fuse(block, maps(4), maps(4, seed=1), plan_fusion(groups, members))
    assert torch.equal(silent, outputs[0])


def test_gradients_reach_every_parameter(block: FusionBlock) -> None:
    plan = plan_fusion([0, 1, NULL_GROUP], [np.arange(2), np.arange(1, 4)])
    fuse(block, maps(3), maps(4, seed=1), plan).square().sum().backward()
    silent = [name for name, p in block.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("seed", range(25))
def test_plan_covers_every_query_exactly_once(seed: int) -> None:
    groups, members = random_grouping(seed, queries=seed * 3, exemplars=6)
    plan = plan_fusion(groups, members)
    rows, width = plan.slots.shape
    seen: set[int] = set()
    for query, group in enumerate(groups):
        cell = int(plan.cells[query])
        if group == NULL_GROUP or not len(members[group]):
            assert cell == rows * width
            continue
        row, column = divmod(cell, width)
        assert plan.slots[row, column] == query
        assert plan.members[row][plan.present[row]].tolist() == members[group].tolist()
        seen.add(cell)
    assert len(seen) == sum(group != NULL_GROUP and len(members[group]) > 0 for group in groups)
    assert rows * width <= 2 * max(len(seen), 1) + len(members) * width
    assert rows or not any(len(rows_of_group) for rows_of_group in members)


def test_very_many_exemplars_are_not_masked_in_half_precision(block: FusionBlock) -> None:
    """A class of 5,000 exemplars with 16 tokens each has more keys than float16 can count."""
    heads, size = block.null_key.shape[0], block.null_key.shape[2]
    tokens = ExemplarTokens(*(torch.zeros(4400, heads, 16, size, dtype=torch.float16) for _ in range(2)))
    context = block.context(tokens, plan_fusion([0], [np.arange(4400)]))
    torch.testing.assert_close(
        context.bias[0, 0, 0, 1:].float(), torch.full((4400 * 16,), -math.log(4400 * 16)), rtol=1e-2, atol=0
    )


@pytest.mark.parametrize("group", [-2, 2])
def test_unknown_group_is_refused(group: int) -> None:
    with pytest.raises(ValueError, match=rf"groups from -1 to 1, got \[0, {group}\]"):
        plan_fusion([0, group], [np.arange(2), np.arange(2)])


def test_channels_that_heads_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"channels \(10\) must be a multiple of num_heads \(4\)"):
        FusionBlock(10, num_heads=4, norm_groups=2)
