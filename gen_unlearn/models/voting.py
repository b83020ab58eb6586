"""The fusion of a semi-parametric classifier: labelled exemplars vote with attention weights.

Scores are ``q . k / sqrt(d)`` between the queries of an image and the keys of exemplars, for each expert on
its own; a softmax over exemplars turns them into weights, and a class gets the weights of its exemplars
(Zheng et al. 2026, arXiv 2603.22870). A gate mixes the experts' votes. All votes are log-probabilities.

The vote treats labels as names: relabelling the exemplars relabels the result and changes nothing else. So a
permutation of labels for each batch, which the paper trains with, is the identity here and is not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST = torch.finfo(torch.float32).min


def prototype_vote(queries: Tensor, prototypes: Tensor, present: Tensor, gate: Tensor) -> Tensor:
    """Let one prototype per class vote, the mean of the keys of its exemplars (SPM-C).

    Args:
        queries: ``(batch, experts, key_dim)``.
        prototypes: ``(classes, experts, key_dim)``.
        present: bool ``(classes,)``; a class without an exemplar gets no vote at all.
        gate: log-probabilities of the experts, ``(batch, experts)``.

    Returns:
        Log-probabilities ``(batch, classes)``; minus infinity for classes that are not present.
    """
    scores = _scores(queries, prototypes).masked_fill(~present, -math.inf)
    return _mixed(scores.log_softmax(dim=2), gate)


def exemplar_vote(
    queries: Tensor, keys: Tensor, labels: Tensor, num_classes: int, gate: Tensor, allowed: Tensor
) -> Tensor:
    """Let the exemplars of a training step vote one by one (SPM-R).

    Args:
        queries: ``(batch, experts, key_dim)``.
        keys: ``(exemplars, experts, key_dim)``.
        labels: int64 ``(exemplars,)`` in ``[0, num_classes)``.
        num_classes: number of classes.
        gate: log-probabilities of the experts, ``(batch, experts)``.
        allowed: which exemplars may vote for which query, bool ``(batch, exemplars)``, some for each.

    Returns:
        Log-probabilities ``(batch, num_classes)``; minus infinity for classes without an exemplar.
    """
    scores = _scores(queries, keys).masked_fill(~allowed[:, None], -math.inf)
    return _mixed(_class_sums(scores.log_softmax(dim=2), labels.expand_as(scores), num_classes), gate)


def class_mean_vote(
    queries: Tensor, keys: Tensor, labels: Tensor, num_classes: int, gate: Tensor, allowed: Tensor
) -> Tensor:
    """Let the class means of a training step's exemplars vote: `prototype_vote`, with exceptions.

    The score of a mean is the mean of the scores, so each query can leave out other exemplars. Arguments and
    result are those of `exemplar_vote`.
    """
    members = F.one_hot(labels, num_classes).to(torch.float32)
    counts = (allowed.to(torch.float32) @ members)[:, None]
    sums = _scores(queries, keys).masked_fill(~allowed[:, None], 0.0) @ members
    means = (sums / counts.clamp_min(1)).masked_fill(counts == 0, -math.inf)
    return _mixed(means.log_softmax(dim=2), gate)


def nearest_exemplars(
    queries: Tensor, keys: Tensor, k: int, order: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Find, for each query and expert, the `k` exemplars of the highest scores, or all if there are fewer.

    Args:
        queries: ``(batch, experts, key_dim)``.
        keys: ``(exemplars, experts, key_dim)``.
        k: how many.
        order: of exemplars that tie for the last places, given as rows, returns the order that decides, as
            `argsort` does; without it torch decides by the order of the keys.

    Returns:
        Scores, best first, and rows, int64, both ``(batch, experts, k)``.
    """
    scores = _scores(queries, keys)
    if order is None or k >= len(keys):
        best, rows = scores.topk(min(k, len(keys)), dim=2)
        return best, rows
    best, rows = scores.topk(k + 1, dim=2)  # One more, which ties with the last place or does not.
    tied = best[:, :, k] == best[:, :, k - 1]
    best, rows = best[:, :, :k].contiguous(), rows[:, :, :k].contiguous()
    if tied.any():
        _settle_ties(scores, best, rows, tied, order)
    return best, rows


def _settle_ties(
    scores: Tensor, best: Tensor, rows: Tensor, tied: Tensor, order: Callable[[Tensor], Tensor]
) -> None:
    """Give the last places to the first of those that tie for them, where `tied`, by changing `rows`."""
    for image, expert in tied.nonzero().tolist():
        last = best[image, expert, -1]
        tying = (scores[image, expert] == last).nonzero().squeeze(1)
        places = (best[image, expert] == last).nonzero().squeeze(1)
        rows[image, expert, places] = tying[order(tying)[: len(places)]]


def retrieved_vote(scores: Tensor, labels: Tensor, num_classes: int, gate: Tensor) -> Tensor:
    """Let exemplars that were retrieved for each query vote (SPM-R).

    Args:
        scores: ``(batch, experts, k)``, as from `nearest_exemplars`.
        labels: int64 classes of the retrieved exemplars, ``(batch, experts, k)``.
        num_classes: number of classes.
        gate: log-probabilities of the experts, ``(batch, experts)``.

    Returns:
        Log-probabilities ``(batch, num_classes)``; minus infinity for classes that were not retrieved.
    """
    return _mixed(_class_sums(scores.log_softmax(dim=2), labels, num_classes), gate)


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Return ``q . k / sqrt(d)`` as float32 ``(batch, experts, keys)``."""
    scaled = queries.float() / math.sqrt(queries.shape[2])
    return torch.einsum("bed,ned->ben", scaled, keys.float())


def _class_sums(log_weights: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Add weights ``(batch, experts, n)`` by class, given and returned as logarithms."""
    shape = (*log_weights.shape[:2], num_classes)
    largest = log_weights.new_full(shape, -math.inf)
    largest = largest.scatter_reduce(2, labels, log_weights.detach(), "amax").clamp_min(_LEAST)
    shifted = (log_weights - largest.gather(2, labels)).exp()
    sums = log_weights.new_zeros(shape).scatter_add(2, labels, shifted)
    return torch.where(sums > 0, sums.clamp_min(torch.finfo(sums.dtype).tiny).log() + largest, -math.inf)


def _mixed(votes: Tensor, gate: Tensor) -> Tensor:
    """Mix the experts' log-probabilities ``(batch, experts, classes)``."""
    if votes.shape[1] == 1:
        return votes[:, 0]
    joint = votes + gate[:, :, None]
    possible = ~joint.isneginf().all(dim=1)
    # A sum of nothing but zeros has no gradient, and would make all of them NaN.
    mixed = torch.where(possible[:, None], joint, 0.0).logsumexp(dim=1)
    return torch.where(possible, mixed, -math.inf)
