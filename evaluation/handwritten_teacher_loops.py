"""Loops by hand of methods that answer as another network, or as other images, would answer.

See `evaluation.handwritten_classifier_loops`.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.handwritten_training import Request, optimizer_of, step
from gen_unlearn.methods.classification.bad_teacher import BadTeacher
from gen_unlearn.methods.classification.fcs import Fcs
from gen_unlearn.methods.classification.regun import ReGUn
from gen_unlearn.methods.classification.scrub import Scrub


def divergence(own: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return the distance of logits from those of a teacher."""
    return temperature**2 * F.kl_div(
        F.log_softmax(own / temperature, dim=1),
        F.log_softmax(target / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def scrub(network: nn.Module, request: Request, settings: Scrub) -> None:
    """Obey a teacher on retained images, and disobey it on those to forget."""
    teacher, optimizer = copy.deepcopy(network).eval().requires_grad_(False), optimizer_of(network, settings)
    for epoch in range(settings.epochs):
        network.train()
        for rows in request.retain.shuffled(settings.batch_retain):
            inputs, labels = request.retain.batch(rows)
            own = network(inputs)
            distance = divergence(own, teacher(inputs), settings.temperature)
            step(optimizer, settings.gamma * F.cross_entropy(own, labels) + settings.alpha * distance)
        network.eval()
        for rows in request.forget.shuffled(settings.batch_forget) if epoch < settings.msteps else ():
            inputs = request.forget.inputs[rows]
            step(optimizer, -divergence(network(inputs), teacher(inputs), settings.temperature))


def bad_teacher(network: nn.Module, request: Request, settings: BadTeacher) -> None:
    """Learn from a fresh network on images to forget, and from the original on some retained ones."""
    good = copy.deepcopy(network).eval().requires_grad_(False)
    bad, optimizer = copy.deepcopy(good), optimizer_of(network.train(), settings)
    kept = request.retain.inputs[: int(settings.retain_fraction * len(request.retain.inputs))]
    both = torch.cat([request.forget.inputs, kept])
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(both), device=both.device).split(settings.batch_retain):
            inputs, gone = both[rows], rows < len(request.forget.inputs)
            own = network(inputs)
            target = torch.empty_like(own)
            target[gone], target[~gone] = bad(inputs[gone]), good(inputs[~gone])
            step(optimizer, divergence(own, target.detach(), settings.temperature))


def fcs(network: nn.Module, request: Request, settings: Fcs) -> None:
    """Make outputs uniform, then contrast and repair in turns, each time with an optimiser of its own."""
    for epoch in range(settings.uniform_epochs + settings.epochs):
        uniform = epoch < settings.uniform_epochs
        lr = settings.uniform_lr if uniform else settings.contrast_lr
        optimizer = optimizer_of(network.eval(), replace(settings, lr=lr, weight_decay=0.0))
        others = request.retain.shuffled(settings.batch_retain)
        for rows, kept in zip(
            request.forget.shuffled(settings.batch_forget), itertools.cycle(others), strict=False
        ):
            if uniform:
                own = F.log_softmax(network(request.forget.inputs[rows]), dim=1)
                step(optimizer, -own.mean() - math.log(own.shape[1]))
                continue
            with torch.no_grad():
                retained = network(request.retain.inputs[kept])
            products = network(request.forget.inputs[rows]) @ retained.T / settings.temperature
            step(optimizer, -F.log_softmax(products, dim=1).mean())
        if not uniform:
            optimizer = optimizer_of(network.train(), settings)
            for rows in request.retain.shuffled(settings.batch_retain):
                inputs, labels = request.retain.batch(rows)
                step(optimizer, F.cross_entropy(network(inputs), labels))


def regun(network: nn.Module, request: Request, settings: ReGUn) -> None:
    """Answer images to forget as held-out images of their class, and train on retained ones."""
    with torch.no_grad():
        probabilities = F.softmax(network.eval()(request.heldout.inputs).double(), dim=1)
    own_class = torch.nonzero(request.heldout.labels == request.forget.labels[0]).squeeze(1)
    optimizer = optimizer_of(network, settings)
    for _ in range(settings.epochs):
        forgotten = itertools.cycle(request.forget.shuffled(settings.batch_forget))
        for rows, gone in zip(request.retain.shuffled(settings.batch_retain), forgotten, strict=False):
            drawn = own_class[torch.randint(len(own_class), (len(gone),), device=gone.device)]
            target = probabilities[drawn].mean(dim=0, keepdim=True).float()
            own = F.log_softmax(network.eval()(request.forget.inputs[gone]), dim=1)
            forget = F.kl_div(own, target.expand_as(own), reduction="batchmean")
            inputs, labels = request.retain.batch(rows)
            retain = F.cross_entropy(network.train()(inputs), labels)
            step(optimizer, settings.forget_weight * forget + settings.retain_weight * retain)
