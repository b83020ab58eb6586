"""The vote of exemplars: its laws, and the same numbers as plain loops in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from gen_unlearn.models.voting import (
    class_mean_vote,
    exemplar_vote,
    nearest_exemplars,
    prototype_vote,
    retrieved_vote,
)

CLASSES, DIM, BATCH, EXEMPLARS = 5, 6, 4, 30
ABSENT = 3


class Case(NamedTuple):
    """Queries ``(batch, experts, dim)``, keys ``(exemplars, experts, dim)``, labels, gate, who may vote."""

    queries: Tensor
    keys: Tensor
    labels: Tensor
    gate: Tensor
    allowed: Tensor

    def of(self, rows: Tensor) -> Case:
        """Return the case of some exemplars alone."""
        return self._replace(keys=self.keys[rows], labels=self.labels[rows], allowed=self.allowed[:, rows])


Vote = Callable[[Case], Tensor]


def case(experts: int, seed: int = 0, scale: float = 1.0) -> Case:
    """Draw exemplars of all classes but one."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES - 1, (EXEMPLARS,), generator=draws)
    labels[: CLASSES - 1] = torch.arange(CLASSES - 1)
    return Case(
        scale * torch.randn(BATCH, experts, DIM, generator=draws),
        torch.randn(EXEMPLARS, experts, DIM, generator=draws),
        torch.where(labels >= ABSENT, labels + 1, labels),
        torch.randn(BATCH, experts, generator=draws).log_softmax(dim=1),
        torch.ones(BATCH, EXEMPLARS, dtype=torch.bool),
    )


def among_themselves(experts: int, seed: int = 0, scale: float = 1.0) -> Case:
    """Let images be exemplars for each other, but none for itself or for its copies, of which there are some.

    The first is the only one of its class, and so are the second and its copy of theirs.
    """
    draws = torch.Generator().manual_seed(seed)
    names = torch.tensor([0, 1, 1, *range(2, EXEMPLARS - 6), 4, 4, 7, 8])
    labels = torch.where(names < 2, names, 2 + names % 2)
    return Case(
        scale * torch.randn(len(names), experts, DIM, generator=draws),
        torch.randn(EXEMPLARS, experts, DIM, generator=draws)[names],
        labels,
        torch.randn(len(names), experts, generator=draws).log_softmax(dim=1),
        names[:, None] != names,
    )


def by_prototypes(one: Case) -> Tensor:
    members = torch.nn.functional.one_hot(one.labels, CLASSES).T.to(one.keys.dtype)
    counts = members.sum(dim=1)
    means = torch.einsum("cn,ned->ced", members, one.keys) / counts.clamp_min(1)[:, None, None]
    return prototype_vote(one.queries, means, counts > 0, one.gate)


def by_means(one: Case) -> Tensor:
    return class_mean_vote(one.queries, one.keys, one.labels, CLASSES, one.gate, one.allowed)


def by_exemplars(one: Case) -> Tensor:
    return exemplar_vote(one.queries, one.keys, one.labels, CLASSES, one.gate, one.allowed)


def by_nearest(one: Case) -> Tensor:
    scores, rows = nearest_exemplars(one.queries, one.keys, 7)
    return retrieved_vote(scores, one.labels[rows], CLASSES, one.gate)


VOTES = pytest.mark.parametrize("vote", [by_prototypes, by_means, by_exemplars, by_nearest])
OF_TRAINING = pytest.mark.parametrize("vote", [by_means, by_exemplars])
EXPERTS = pytest.mark.parametrize("experts", [1, 2, 3])


def reference(vote: Vote, one: Case) -> np.ndarray:
    """Return probabilities ``(batch, classes)`` by loops over images, experts and voters."""
    queries, keys, gate = (part.detach().double().numpy() for part in (one.queries, one.keys, one.gate))
    labels = one.labels.numpy()
    found = np.zeros((len(queries), CLASSES))
    for image in range(len(queries)):
        for expert in range(queries.shape[1]):
            rows = np.flatnonzero(one.allowed[image].numpy())
            voters = [(keys[row, expert], labels[row]) for row in rows]
            if vote in (by_prototypes, by_means):
                of_class = {c: [key for key, label in voters if label == c] for c in range(CLASSES)}
                voters = [(np.mean(members, axis=0), c) for c, members in of_class.items() if members]
            scores = [sum(queries[image, expert] * key) / math.sqrt(DIM) for key, _ in voters]
            chosen = sorted(range(len(voters)), key=lambda voter: -scores[voter])
            chosen = chosen[:7] if vote is by_nearest else chosen
            weights = {voter: math.exp(scores[voter] - max(scores)) for voter in chosen}
            for voter, weight in weights.items():
                share = weight / sum(weights.values())
                found[image, voters[voter][1]] += math.exp(gate[image, expert]) * share
    return found


@VOTES
@EXPERTS
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_plain_loops(vote: Vote, experts: int, seed: int) -> None:
    one = case(experts, seed, scale=3.0)
    np.testing.assert_allclose(vote(one).exp().numpy(), reference(vote, one), rtol=2e-5, atol=1e-7)


@VOTES
@EXPERTS
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_is_a_distribution_over_the_classes_that_have_exemplars(
    vote: Vote, experts: int, scale: float
) -> None:
    found = vote(case(experts, scale=scale)).double().exp()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(BATCH, dtype=torch.float64), rtol=0, atol=2e-6)
    assert (found[:, ABSENT] == 0).all()


@VOTES
@EXPERTS
def test_the_order_of_the_exemplars_does_not_matter(vote: Vote, experts: int) -> None:
    one = case(experts)
    order = torch.randperm(EXEMPLARS, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(vote(one.of(order)), vote(one), rtol=0, atol=2e-6)


@VOTES
@EXPERTS
def test_labels_are_names(vote: Vote, experts: int) -> None:
    """Relabelling permutes the result, and leaves its loss: drawing a permutation would be the identity."""
    one, renamed = case(experts), torch.tensor([3, 0, 4, 1, 2])
    found = vote(one._replace(labels=renamed[one.labels]))
    torch.testing.assert_close(found[:, renamed], vote(one), rtol=0, atol=2e-6)


@VOTES
@EXPERTS
def test_the_last_class_that_is_left_gets_everything(vote: Vote, experts: int) -> None:
    one = case(experts)
    found = vote(one.of(one.labels == 2))
    torch.testing.assert_close(found[:, 2], torch.zeros(BATCH), rtol=0, atol=1e-6)
    assert found[:, [0, 1, 3, 4]].isneginf().all()


@pytest.mark.parametrize("vote", [by_prototypes, by_means, by_exemplars])
@EXPERTS
def test_one_class_deleted_leaves_the_others_in_proportion(vote: Vote, experts: int) -> None:
    one = case(experts)
    one = one._replace(gate=torch.zeros(BATCH, experts).log_softmax(dim=1))
    rest = [1, 2, 4]
    before = vote(one).exp()
    after = vote(one.of(one.labels != 0)).exp()
    assert (after[:, 0] == 0).all()
    if experts == 1:  # With more, each expert is normalised anew.
        expected = before[:, rest] / before[:, rest].sum(dim=1, keepdim=True)
        torch.testing.assert_close(after[:, rest], expected, rtol=1e-5, atol=1e-7)


@EXPERTS
def test_retrieving_all_exemplars_is_the_vote_of_all(experts: int) -> None:
    one = case(experts)
    for k in (EXEMPLARS, EXEMPLARS + 1, 10**6):
        scores, rows = nearest_exemplars(one.queries, one.keys, k)
        assert scores.shape == rows.shape == (BATCH, experts, EXEMPLARS)
        found = retrieved_vote(scores, one.labels[rows], CLASSES, one.gate)
        torch.testing.assert_close(found, by_exemplars(one), rtol=0, atol=2e-6)


@EXPERTS
@pytest.mark.parametrize("k", [1, 4])
def test_the_nearest_are_those_of_the_highest_scores(experts: int, k: int) -> None:
    one = case(experts)
    scores, rows = nearest_exemplars(one.queries, one.keys, k)
    all_scores = torch.einsum("bed,ned->ben", one.queries, one.keys) / math.sqrt(DIM)
    torch.testing.assert_close(scores, all_scores.gather(2, rows))
    for image in range(BATCH):
        for expert in range(experts):
            expected = all_scores[image, expert].argsort(descending=True)[:k]
            assert rows[image, expert].tolist() == expected.tolist()


def order_by(names: Tensor, rows: Tensor) -> Tensor:
    return names[rows].argsort()


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 9, 20])
def test_ties_for_the_last_places_are_settled_by_the_order_that_is_given(k: int) -> None:
    """Nine exemplars are three keys, three times each: in any order of the rows the same ones are found."""
    draws = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(6, 2, DIM, generator=draws), torch.randn(3, 2, DIM, generator=draws)
    keys = keys.repeat(3, 1, 1)
    found = []
    for seed in range(4):
        names = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
        scores, rows = nearest_exemplars(
            queries, keys[names], k, lambda tied, names=names: names[tied].argsort()
        )
        retrieved = names[rows]
        for image, expert in np.ndindex(6, 2):
            own = torch.einsum("d,nd->n", queries[image, expert], keys[:, expert]) / math.sqrt(DIM)
            torch.testing.assert_close(own[retrieved[image, expert]], scores[image, expert])
        found.append(retrieved.sort(dim=2).values)
    assert all(torch.equal(one, found[0]) for one in found)
    assert found[0].shape[2] == min(k, 9)


@EXPERTS
def test_one_exemplar_per_class_is_its_own_prototype(experts: int) -> None:
    one = case(experts)
    kept = torch.tensor([int((one.labels == label).nonzero()[0]) for label in (0, 1, 2, 4)])
    one = one.of(kept)
    torch.testing.assert_close(by_prototypes(one), by_exemplars(one), rtol=0, atol=2e-6)


def test_an_expert_that_the_gate_shuts_out_has_no_say() -> None:
    two = case(2)
    shut = two._replace(gate=torch.tensor([[0.0, -math.inf]]).expand(BATCH, 2))
    alone = Case(two.queries[:, :1], two.keys[:, :1], two.labels, torch.zeros(BATCH, 1), two.allowed)
    for vote in (by_prototypes, by_means, by_exemplars, by_nearest):
        torch.testing.assert_close(vote(shut), vote(alone), rtol=0, atol=1e-6)


# --- exemplars that are left out


@EXPERTS
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_class_means_with_nothing_left_out_are_the_prototypes(experts: int, scale: float) -> None:
    one = case(experts, scale=scale)
    torch.testing.assert_close(by_means(one), by_prototypes(one), rtol=1e-5, atol=2e-6)


@OF_TRAINING
@EXPERTS
@pytest.mark.parametrize("seed", [0, 1])
def test_leaving_out_agrees_with_plain_loops(vote: Vote, experts: int, seed: int) -> None:
    one = among_themselves(experts, seed, scale=3.0)
    np.testing.assert_allclose(vote(one).exp().numpy(), reference(vote, one), rtol=2e-5, atol=1e-7)


@OF_TRAINING
@EXPERTS
def test_who_is_left_out_might_as_well_not_be_there(vote: Vote, experts: int) -> None:
    """Each image alone, against the exemplars without it and its copies: for means, their prototypes."""
    one = among_themselves(experts)
    whole = vote(one)
    for image in range(len(one.queries)):
        alone = Case(one.queries[[image]], one.keys, one.labels, one.gate[[image]], one.allowed[[image]])
        alone = alone.of(one.allowed[image])
        assert alone.allowed.all()
        never = by_prototypes(alone) if vote is by_means else vote(alone)
        torch.testing.assert_close(whole[[image]], never, rtol=1e-5, atol=2e-6)


@OF_TRAINING
@EXPERTS
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_what_is_left_out_has_no_gradient_and_spoils_none(vote: Vote, experts: int, scale: float) -> None:
    """The images that are alone in their classes get no vote for them, and the mask keeps them out."""
    one = among_themselves(experts, scale=scale)
    leaves = [part.clone().requires_grad_() for part in (one.queries, one.keys, one.gate)]
    found = vote(Case(leaves[0], leaves[1], one.labels, leaves[2], one.allowed))
    losses = -found.gather(1, one.labels[:, None]).squeeze(1)
    assert losses.isposinf().tolist() == [label < 2 for label in one.labels.tolist()]
    torch.where(losses.isposinf(), 0.0, losses).sum().backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)
    assert leaves[0].grad is not None
    assert (leaves[0].grad[:3] == 0).all()
    (own,) = torch.autograd.grad(vote(one._replace(keys=leaves[1]))[5, one.labels[5]], leaves[1])
    assert (own[~one.allowed[5]] == 0).all()
    assert scale != 1 or (own[one.allowed[5]] != 0).all()


# --- gradients


def loss_of(vote: Vote, one: Case, targets: Tensor) -> Tensor:
    return -vote(one).gather(1, targets[:, None]).sum()


def gradients(vote: Vote, one: Case, targets: Tensor) -> list[Tensor]:
    leaves = [part.detach().clone().requires_grad_() for part in (one.queries, one.keys, one.gate)]
    loss_of(vote, Case(leaves[0], leaves[1], one.labels, leaves[2], one.allowed), targets).backward()
    return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]


@pytest.mark.parametrize("vote", [by_prototypes, by_means, by_exemplars])
@EXPERTS
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 1e30])
def test_gradients_are_finite_for_absent_classes_and_extreme_scores(
    vote: Vote, experts: int, scale: float
) -> None:
    """Even an image of the absent class, whose loss the training masks, must not spoil the others'."""
    one, targets = case(experts, scale=scale), torch.tensor([0, 1, ABSENT, 4])
    leaves = [part.clone().requires_grad_() for part in (one.queries, one.keys, one.gate)]
    found = vote(Case(leaves[0], leaves[1], one.labels, leaves[2], one.allowed))
    losses = -found.gather(1, targets[:, None]).squeeze(1)
    torch.where(targets != ABSENT, losses, 0.0).sum().backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)


@VOTES
@EXPERTS
def test_gradients_agree_with_finite_differences_of_plain_loops(vote: Vote, experts: int) -> None:
    one, targets = case(experts, seed=3), torch.tensor([0, 1, 2, 4])
    if vote is by_nearest:  # whose images may have retrieved no exemplar of a given class
        targets = by_nearest(one).argmax(dim=1)
    found = gradients(vote, one, targets)
    one = Case(*(part.double() if part.is_floating_point() else part for part in one))
    step = 1e-5
    for part, name in enumerate(("queries", "keys", "gate")):
        if name == "gate" and experts == 1:
            continue  # One expert has no gate.
        whole = getattr(one, name)
        for place in np.random.default_rng(0).choice(whole.numel(), min(8, whole.numel()), replace=False):
            sides = []
            for sign in (1, -1):
                moved = whole.clone()
                moved.view(-1)[place] += sign * step
                chosen = reference(vote, one._replace(**{name: moved}))[np.arange(BATCH), targets.numpy()]
                sides.append(-np.log(chosen).sum())
            slope = (sides[0] - sides[1]) / (2 * step)
            assert found[part].view(-1)[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_the_vote_of_retrieved_scores_passes_gradcheck_in_double_precision() -> None:
    draws = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 2, 6, dtype=torch.float64, generator=draws, requires_grad=True)
    gate = torch.randn(3, 2, dtype=torch.float64, generator=draws, requires_grad=True)
    labels = torch.tensor([0, 1, 1, 2, 0, 1]).expand(3, 2, 6)

    def chosen(scores: Tensor, gate: Tensor) -> Tensor:
        return retrieved_vote(scores, labels, 4, gate.log_softmax(dim=1))[:, :3]

    assert torch.autograd.gradcheck(chosen, (scores, gate))
