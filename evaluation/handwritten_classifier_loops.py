"""What a programmer writes who wants one unlearning method for one classifier and nothing else.

Plain tensors on the device, a shuffled order, a loss, a step. Nothing is counted, checked or reproducible,
and the network must be without dropout. `gen_unlearn.methods` is timed against these loops: the same passes
through the network and the same arithmetic, other random numbers.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from evaluation.handwritten_teacher_loops import bad_teacher, fcs, regun, scrub
from evaluation.handwritten_training import Images, Request, optimizer_of, step, train_on
from gen_unlearn.methods.classification.amun import Amun
from gen_unlearn.methods.classification.boundary import BoundaryExpand
from gen_unlearn.methods.classification.l1_sparse import L1Sparse
from gen_unlearn.methods.classification.msg import Msg
from gen_unlearn.methods.classification.negative_gradient import NegGradPlus
from gen_unlearn.methods.classification.negmerge import NegMerge
from gen_unlearn.methods.classification.partial_layers import CatastrophicForgettingK
from gen_unlearn.methods.classification.random_labels import RandomLabels
from gen_unlearn.methods.classification.saliency_unlearning import SaliencyUnlearning
from gen_unlearn.methods.classification.salun_soft import SalUnSoft
from gen_unlearn.methods.classification.unsir import Unsir
from gen_unlearn.methods.loop import LoopSettings


def fine_tune(network: nn.Module, request: Request, settings: LoopSettings) -> None:
    """Train on the retained images."""
    train_on(network.train(), request.retain, settings.batch_retain, settings)


def train_on_forget(network: nn.Module, request: Request, settings: LoopSettings) -> None:
    """Train on the images to forget, whatever their labels are, with the averages of batch normalisation."""
    train_on(network.eval(), request.forget, settings.batch_forget, settings)


def negmerge(network: nn.Module, request: Request, settings: NegMerge) -> None:
    """Train copies on the images to forget."""
    for _ in settings.rates:
        train_on_forget(copy.deepcopy(network), request, settings)


def gradient_ascent(network: nn.Module, request: Request, settings: LoopSettings) -> None:
    """Ascend on the images to forget."""
    optimizer = optimizer_of(network.eval(), settings)
    for _ in range(settings.epochs):
        for rows in request.forget.shuffled(settings.batch_forget):
            inputs, labels = request.forget.batch(rows)
            step(optimizer, -F.cross_entropy(network(inputs), labels))


def l1_sparse(network: nn.Module, request: Request, settings: L1Sparse) -> None:
    """Fine-tune with a penalty on the size of weights."""
    optimizer, weights = optimizer_of(network.train(), settings), list(network.parameters())
    for epoch in range(settings.epochs):
        for rows in request.retain.shuffled(settings.batch_retain):
            inputs, labels = request.retain.batch(rows)
            size = torch.stack([weight.abs().sum() for weight in weights]).sum()
            step(optimizer, F.cross_entropy(network(inputs), labels) + settings.gamma(epoch) * size)


def neggrad_plus(network: nn.Module, request: Request, settings: NegGradPlus) -> None:
    """Descend on retained images and ascend on those to forget in the same step."""
    optimizer = optimizer_of(network, settings)
    for _ in range(settings.epochs):
        forgotten = itertools.cycle(request.forget.shuffled(settings.batch_forget))
        for rows, gone in zip(request.retain.shuffled(settings.batch_retain), forgotten, strict=False):
            inputs, labels = request.retain.batch(rows)
            retain = F.cross_entropy(network.train()(inputs), labels)
            inputs, labels = request.forget.batch(gone)
            forget = F.cross_entropy(network.eval()(inputs), labels)
            step(optimizer, settings.alpha * retain - (1 - settings.alpha) * forget)


def random_labels(
    network: nn.Module,
    request: Request,
    settings: RandomLabels,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train on random labels of the images to forget, then on retained images, in every epoch."""
    optimizer, classes = optimizer_of(network, settings), 1 + int(request.retain.labels.max())
    for _ in range(settings.epochs):
        network.eval()
        for rows in request.forget.shuffled(settings.batch_forget):
            drawn = torch.randint(classes, (len(rows),), device=rows.device)
            step(optimizer, F.cross_entropy(network(request.forget.inputs[rows]), drawn))
            after_step()
        network.train()
        for rows in request.retain.shuffled(settings.batch_retain):
            inputs, labels = request.retain.batch(rows)
            step(optimizer, F.cross_entropy(network(inputs), labels))
            after_step()


def salun(network: nn.Module, request: Request, settings: SaliencyUnlearning) -> None:
    """Train on random labels, and put back the weights outside of a mask."""
    weights = list(network.parameters())
    anchors = [weight.detach().clone() for weight in weights]
    masks = [torch.rand_like(weight) < settings.keep for weight in weights]

    @torch.no_grad()
    def put_back() -> None:
        for weight, mask, anchor in zip(weights, masks, anchors, strict=True):
            weight.copy_(torch.where(mask, weight, anchor))

    random_labels(network, request, settings, put_back)


def salun_soft(network: nn.Module, request: Request, settings: SalUnSoft) -> None:
    """Train on random labels, and pull all weights towards where they were."""
    weights = list(network.parameters())
    anchors = [weight.detach().clone() for weight in weights]
    length = settings.lr * settings.beta

    @torch.no_grad()
    def pull() -> None:
        for weight, anchor in zip(weights, anchors, strict=True):
            change = weight - anchor
            weight.copy_(torch.where(change.abs() <= length, anchor, weight - length * change.sign()))

    random_labels(network, request, settings, pull)


def last_blocks(network: nn.Module, request: Request, settings: CatastrophicForgettingK) -> None:
    """Train the last children on retained images."""
    network.eval().requires_grad_(False)
    for block in [child for child in network.children() if list(child.parameters())][-settings.k :]:
        block.train().requires_grad_(True)
    train_on(network, request.retain, settings.batch_retain, settings)


def msg(network: nn.Module, request: Request, settings: Msg) -> None:
    """Fine-tune with smaller gradients of the weights that were not drawn anew."""
    optimizer, weights = optimizer_of(network.train(), settings), list(network.parameters())
    scales = [
        torch.where(torch.rand_like(weight) < settings.fraction, 1.0, settings.kept_scale)
        if weight.ndim == 4
        else torch.tensor(settings.kept_scale, device=weight.device)
        for weight in weights
    ]
    for _ in range(settings.epochs):
        for rows in request.retain.shuffled(settings.batch_retain):
            inputs, labels = request.retain.batch(rows)
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), labels).backward()
            for weight, scale in zip(weights, scales, strict=True):
                assert weight.grad is not None
                weight.grad *= scale
            optimizer.step()


def unsir(network: nn.Module, request: Request, settings: Unsir) -> None:
    """Train on noise with forgotten labels beside retained images, then on retained images."""
    count = settings.noise_images * settings.copies
    noise = torch.randn(count, *request.forget.inputs.shape[1:], device=request.forget.inputs.device)
    labels = torch.zeros(count, dtype=torch.int64, device=noise.device)
    both = Images(torch.cat([noise, request.retain.inputs]), torch.cat([labels, request.retain.labels]))
    for images in (both, request.retain):
        train_on(network.train(), images, settings.batch_retain, settings)


def boundary_expand(network: nn.Sequential, request: Request, settings: BoundaryExpand) -> None:
    """Train the images to forget on one class more."""
    head = network[-1]
    network[-1] = nn.Linear(head.in_features, head.out_features + 1).to(head.weight.device)
    optimizer = optimizer_of(network.eval(), settings)
    for _ in range(settings.epochs):
        for rows in request.forget.shuffled(settings.batch_forget):
            shadow = torch.full((len(rows),), head.out_features, device=rows.device)
            step(optimizer, F.cross_entropy(network(request.forget.inputs[rows]), shadow))


def amun(network: nn.Module, request: Request, settings: Amun) -> None:
    """Train on adversarial examples, here other float images, beside retained images."""
    both = Images(
        torch.cat([torch.randn_like(request.forget.inputs), request.retain.inputs]),
        torch.cat([request.forget.labels, request.retain.labels]),
    )
    train_on(network.train(), both, settings.batch_retain, settings)


LOOPS: dict[str, Callable[..., None]] = {
    "fine-tune": fine_tune,
    "l1-sparse": l1_sparse,
    "gradient-ascent": gradient_ascent,
    "neggrad-plus": neggrad_plus,
    "random-labels": random_labels,
    "salun": salun,
    "salun-soft": salun_soft,
    "scrub": scrub,
    "bad-teacher": bad_teacher,
    "cf-k": last_blocks,
    "eu-k": last_blocks,
    "msg": msg,
    "ct": fine_tune,
    "fcs": fcs,
    "unsir": unsir,
    "boundary-shrink": train_on_forget,
    "boundary-expand": boundary_expand,
    "amun": amun,
    "task-arithmetic": train_on_forget,
    "negmerge": negmerge,
    "regun": regun,
}
"""Loops of all methods that take steps, but for ``scrub-rewind`` and ``rum``, which take those of others."""
