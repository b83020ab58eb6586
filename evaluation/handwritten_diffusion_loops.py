"""What a programmer writes who wants one unlearning method for one denoiser and nothing else.

See `evaluation.handwritten_classifier_loops`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.handwritten_training import Images, Request
from gen_unlearn.methods.diffusion.denoising import DenoisingModel
from gen_unlearn.methods.diffusion.erase_diff import EraseDiff
from gen_unlearn.methods.diffusion.gradient_surgery import GradientSurgery
from gen_unlearn.methods.diffusion.label_erasure import LabelErasure
from gen_unlearn.methods.diffusion.neg_grad import NegGradDenoiser
from gen_unlearn.methods.diffusion.neg_grad_plus import NegGradPlusDenoiser
from gen_unlearn.methods.diffusion.salun import SalunDenoiser
from gen_unlearn.methods.diffusion.selective_amnesia import SelectiveAmnesia
from gen_unlearn.methods.diffusion.settings import DiffusionSettings
from gen_unlearn.methods.diffusion.sfr_on import SfrOn
from gen_unlearn.methods.diffusion.siss import Siss


class Noisy(NamedTuple):
    """Noisy images, and what was drawn to make them."""

    images: Tensor
    noise: Tensor
    timesteps: Tensor


class Denoiser:
    """A network with its noise schedule, and its optimiser.

    Args:
        model: trained in place.
        settings: of the optimiser.
    """

    def __init__(self, model: DenoisingModel, settings: DiffusionSettings) -> None:
        self.network, self.null = model.network.train(), model.classes
        self.signal, self.deviation = model.get_buffer("signal"), model.get_buffer("deviation")
        self.weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(self.weights, settings.lr, settings.betas, settings.eps, settings.weight_decay)
        self.settings = settings

    def noised(self, images: Tensor) -> Noisy:
        """Add noise at random timesteps."""
        timesteps = torch.randint(len(self.signal), (len(images),), device=images.device)
        noise = torch.randn_like(images)
        signal, deviation = (part[timesteps][:, None, None, None] for part in (self.signal, self.deviation))
        return Noisy(signal * images + deviation * noise, noise, timesteps)

    def predicted(self, noisy: Noisy, labels: Tensor) -> Tensor:
        """Return what the network takes the noise for."""
        found: Tensor = self.network(noisy.images, noisy.timesteps, class_labels=labels).sample
        return found

    def errors(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared error of every image."""
        noisy = self.noised(images)
        return (self.predicted(noisy, labels) - noisy.noise).square().mean(dim=(1, 2, 3))

    def loss(self, images: Images, rows: Tensor, dropout: float = 0.0) -> Tensor:
        """Return the loss of some rows, whose labels are dropped at random."""
        inputs, labels = images.batch(rows)
        if dropout:
            dropped = torch.rand(len(labels), device=labels.device) < dropout
            labels = torch.where(dropped, self.null, labels)
        return self.errors(inputs, labels).mean()

    def gradient(self, loss: Tensor, keep_graph: bool = False) -> Sequence[Tensor]:
        """Return the gradient of a loss."""
        return torch.autograd.grad(loss, self.weights, retain_graph=keep_graph)

    def step(self, loss: Tensor) -> None:
        """Take a step down a loss."""
        self.optimizer.zero_grad()
        loss.backward()
        self.move()

    def move(self) -> None:
        """Take a step by the gradients as they are."""
        torch.nn.utils.clip_grad_norm_(self.weights, self.settings.clip or math.inf)
        self.optimizer.step()


def drawn(images: Images, size: int, steps: int) -> Iterator[Tensor]:
    """Yield the rows of so many steps, from shuffled passes over the images."""
    count, device = len(images.inputs), images.inputs.device
    passes = -(-steps * size // count)
    order = torch.cat([torch.randperm(count, device=device) for _ in range(passes)])
    yield from order.split(size)[:steps]


def both(request: Request, settings: DiffusionSettings) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows to forget and to retain of every step."""
    forget = drawn(request.forget, settings.batch_forget, settings.steps)
    return zip(forget, drawn(request.retain, settings.batch_retain, settings.steps), strict=True)


def product(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return the scalar product of two gradients."""
    pairs = zip(first, second, strict=True)
    return torch.stack([(one.double() * two.double()).sum() for one, two in pairs]).sum()


def fine_tune(model: DenoisingModel, request: Request, settings: DiffusionSettings) -> None:
    """Train on retained images."""
    student = Denoiser(model, settings)
    for rows in drawn(request.retain, settings.batch_retain, settings.steps):
        student.step(student.loss(request.retain, rows, settings.label_dropout))


def neggrad(model: DenoisingModel, request: Request, settings: NegGradDenoiser) -> None:
    """Ascend on images to forget."""
    student = Denoiser(model, settings)
    for rows in drawn(request.forget, settings.batch_forget, settings.steps):
        student.step(-settings.strength * student.loss(request.forget, rows))


def neggrad_plus(model: DenoisingModel, request: Request, settings: NegGradPlusDenoiser) -> None:
    """Descend on retained images, and ascend by a gradient that has a share of the norm of theirs."""
    student = Denoiser(model, settings)
    for gone, rows in both(request, settings):
        retain = student.gradient(student.loss(request.retain, rows, settings.label_dropout))
        forget = student.gradient(student.loss(request.forget, gone))
        factor = settings.ratio * (product(retain, retain) / product(forget, forget)).sqrt().float()
        for weight, kept, lost in zip(student.weights, retain, forget, strict=True):
            weight.grad = kept - factor * lost
        student.move()


def siss(model: DenoisingModel, request: Request, settings: Siss) -> None:
    """Show one noisy image that may come from either part, and weigh both losses."""
    student = Denoiser(model, settings)
    everything = Images(*(torch.cat(pair) for pair in zip(request.forget, request.retain, strict=True)))
    gone = drawn(request.forget, settings.batch_retain, settings.steps)
    factor = torch.zeros(())
    for number, rows in enumerate(drawn(everything, settings.batch_retain, settings.steps)):
        (images, labels), (others, wrong) = everything.batch(rows), request.forget.batch(next(gone))
        dropped = torch.rand(len(rows), device=rows.device) < settings.label_dropout
        labels, wrong = torch.where(dropped, student.null, labels), torch.where(dropped, student.null, wrong)
        chosen = torch.rand(len(rows), device=rows.device) < settings.mixture
        picked = chosen[:, None, None, None]
        noisy = student.noised(torch.where(picked, others, images))
        ratio = (student.signal / student.deviation)[noisy.timesteps][:, None, None, None]
        shift = ratio * (images - others)
        half = torch.where(chosen, -0.5, 0.5) * shift.square().sum(dim=(1, 2, 3))
        gap = (noisy.noise * shift).sum(dim=(1, 2, 3)) + half
        gap = torch.where(labels == wrong, gap, torch.where(chosen, -math.inf, math.inf))
        gap = gap - math.log(settings.mixture / (1 - settings.mixture))
        found = student.predicted(noisy, torch.where(chosen, wrong, labels))
        of_images = (found - torch.where(picked, noisy.noise - shift, noisy.noise)).square()
        of_others = (found - torch.where(picked, noisy.noise, noisy.noise + shift)).square()
        weights = torch.sigmoid(gap) / (1 - settings.mixture), torch.sigmoid(-gap) / settings.mixture
        first = (weights[0] * of_images.mean(dim=(1, 2, 3))).mean()
        first = first * len(everything.inputs) / len(request.retain.inputs)
        second = (weights[1] * of_others.mean(dim=(1, 2, 3))).mean()
        if number % settings.norm_every == 0:
            forget, retain = (student.gradient(part, keep_graph=True) for part in (second, first))
            factor = settings.ratio * (product(retain, retain) / product(forget, forget)).sqrt().float()
        student.step(first - factor * second)


def erasediff(model: DenoisingModel, request: Request, settings: EraseDiff) -> None:
    """Descend on retained images and, by a multiplier, on uniform targets for those to forget."""
    student, inner = Denoiser(model, settings), copy.deepcopy(model)
    forgotten = drawn(request.forget, settings.batch_forget, settings.steps * settings.inner_steps)

    def uniform(learner: Denoiser, rows: Tensor) -> Tensor:
        inputs, labels = request.forget.batch(rows)
        target = torch.rand_like(inputs)
        return (learner.predicted(learner.noised(inputs), labels) - target).square().mean()

    for gone, rows in both(request, settings):
        student.optimizer.zero_grad()
        student.loss(request.retain, rows, settings.label_dropout).backward()
        forget = student.gradient(uniform(student, gone))
        inner.load_state_dict(model.state_dict())
        reached = Denoiser(inner, settings)
        for _ in range(settings.inner_steps):
            reached.step(uniform(reached, next(forgotten)))
        with torch.no_grad():
            uniform(reached, gone)
        retain = [weight.grad for weight in student.weights if weight.grad is not None]
        factor = settings.eta - product(retain, forget) / product(forget, forget)
        for kept, lost in zip(retain, forget, strict=True):
            kept += factor.clamp(0, settings.largest).float() * lost
        student.move()


def salun(model: DenoisingModel, request: Request, settings: SalunDenoiser) -> None:
    """Learn what the original shows for another label, and put back the weights outside of a mask."""
    reference = copy.deepcopy(model.network).eval().requires_grad_(False)
    student = Denoiser(model, settings)
    anchors = [weight.detach().clone() for weight in student.weights]
    masks = [torch.rand_like(weight) < settings.keep for weight in student.weights]
    for gone, rows in both(request, settings):
        inputs, labels = request.forget.batch(gone)
        noisy = student.noised(inputs)
        target = reference(noisy.images, noisy.timesteps, class_labels=(labels + 1) % student.null).sample
        forget = (student.predicted(noisy, labels) - target).square().mean()
        retain = student.loss(request.retain, rows, settings.label_dropout)
        student.step(forget + settings.retain_weight * retain)
        with torch.no_grad():
            for weight, mask, anchor in zip(student.weights, masks, anchors, strict=True):
                weight.copy_(torch.where(mask, weight, anchor))


def selective_amnesia(model: DenoisingModel, request: Request, settings: SelectiveAmnesia) -> None:
    """Learn uniform noise for forgotten labels, with elastic weights and replay."""
    student = Denoiser(model, settings)
    anchors = [weight.detach().clone() for weight in student.weights]
    fisher = [torch.rand_like(weight) for weight in student.weights]
    for gone, rows in both(request, settings):
        inputs, labels = request.forget.batch(gone)
        forget = student.errors(torch.rand_like(inputs) * 2 - 1, labels).mean()
        drift = [
            (importance * (weight - anchor).square()).sum()
            for importance, weight, anchor in zip(fisher, student.weights, anchors, strict=True)
        ]
        replay = student.loss(request.retain, rows, settings.label_dropout)
        loss = forget + settings.penalty * torch.stack(drift).sum() + settings.replay_weight * replay
        student.step(loss)


def sfr_on(model: DenoisingModel, request: Request, settings: SfrOn) -> None:
    """Ascend on images to forget inside of a mask, and repair, in turns."""
    student = Denoiser(model, settings)
    masks = [torch.rand_like(weight) < 0.5 for weight in student.weights]
    for number, (gone, rows) in enumerate(both(request, settings)):
        before = [weight.detach().clone() for weight in student.weights]
        errors = student.errors(*request.forget.batch(gone))
        weights = errors.detach().pow(-settings.power)
        size = settings.ascent * 0.5 * (1 + math.cos(math.pi * number / settings.steps))
        student.optimizer.zero_grad()
        (-size * (weights / weights.sum() * errors).sum()).backward()
        for weight, mask in zip(student.weights, masks, strict=True):
            assert weight.grad is not None
            weight.grad *= mask
        student.move()
        with torch.no_grad():
            for weight, mask, old in zip(student.weights, masks, before, strict=True):
                weight.copy_(torch.where(mask, weight, old))
        student.step(student.loss(request.retain, rows, settings.label_dropout))


def gradient_surgery(model: DenoisingModel, request: Request, settings: GradientSurgery) -> None:
    """Ascend without what opposes the gradient of retained images."""
    student = Denoiser(model, settings)
    for gone, rows in both(request, settings):
        ascent = student.gradient(-student.loss(request.forget, gone))
        retain = student.gradient(student.loss(request.retain, rows, settings.label_dropout))
        factor = (product(ascent, retain).clamp(max=0) / product(retain, retain)).float()
        for weight, up, kept in zip(student.weights, ascent, retain, strict=True):
            weight.grad = settings.retain_weight * kept + settings.forget_weight * (up - factor * kept)
        student.move()


def label_erasure(model: DenoisingModel, request: Request, settings: LabelErasure) -> None:
    """Steer a label away from its class, by the original with and without the label."""
    reference = copy.deepcopy(model.network).eval().requires_grad_(False)
    student = Denoiser(model, settings)
    for rows in drawn(request.forget, settings.batch_forget, settings.steps):
        inputs, labels = request.forget.batch(rows)
        noisy = student.noised(inputs)
        nothing = torch.full_like(labels, student.null)
        null = reference(noisy.images, noisy.timesteps, class_labels=nothing).sample
        shown = reference(noisy.images, noisy.timesteps, class_labels=labels).sample
        target = null - settings.eta * (shown - null)
        student.step((student.predicted(noisy, labels) - target).square().mean())


LOOPS: dict[str, Callable[..., None]] = {
    "fine-tune": fine_tune,
    "neggrad": neggrad,
    "neggrad-plus": neggrad_plus,
    "siss": siss,
    "erasediff": erasediff,
    "salun": salun,
    "selective-amnesia": selective_amnesia,
    "sfr-on": sfr_on,
    "gradient-surgery": gradient_surgery,
    "label-erasure": label_erasure,
}
"""The loops of all methods that take steps."""
