"""SalUn for denoisers: forgotten classes look like others, through the most salient weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.diffusion.denoising import (
    DenoisingLoss,
    DenoisingModel,
    copy_of_denoiser,
    squared_error,
)
from gen_unlearn.methods.diffusion.labels import pseudo_labels, require_labels
from gen_unlearn.methods.diffusion.preset import Preset
from gen_unlearn.methods.diffusion.settings import DiffusionSettings
from gen_unlearn.methods.logits import Batch
from gen_unlearn.methods.loop import batches_of
from gen_unlearn.methods.masked_step import MaskedStep
from gen_unlearn.methods.per_sample import evaluation_mode
from gen_unlearn.methods.saliency import top_mask
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class SalunDenoiser(DiffusionSettings):
    """Predict for a forgotten class what the original predicts for another one.

    SalUn (Fan et al., arXiv 2310.12508). The loss of a step is ``mean |eps(u_t, c) - eps_ref(u_t, c')|^2 +
    retain_weight loss(retain)``, with the pseudo-label c' of `pseudo_labels`. It forgets classes, and single
    images as members of their classes.

    Attributes:
        retain_weight: of the retained images' loss.
        keep: share of the weights that may move; the others stay as they are, to the bit.
        guidance: scale of classifier-free guidance ``eps(null) + guidance (eps(c) - eps(null))`` while the
            saliency is measured; 1, or a network without a null label, is the plain prediction.
        mask_clip: greatest norm of the gradient of each batch of which the saliency is the sum; `None` for
            none.
        reference: whose prediction is learnt: the original's, or that of the model as it is at each step, as
            published. In evaluation mode and without gradients in both cases.

    Raises:
        ValueError: a number is out of range, the network has no labels, or no class is left to show.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    retain_weight: float = 1.0
    keep: float = 0.5
    guidance: float = 2.0
    mask_clip: float | None = 1.0
    reference: Literal["frozen", "moving"] = "frozen"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.keep <= 1:
            raise ValueError(f"expected keep from 0 to 1, got {self.keep}")
        if self.retain_weight < 0:
            raise ValueError(f"expected retain_weight of at least 0, got {self.retain_weight}")
        if self.mask_clip is not None and not self.mask_clip > 0:
            raise ValueError(f"expected mask_clip above 0 or none, got {self.mask_clip}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model in which the other weights are those of the original, to the bit."""
        student = copy_of_denoiser(model, accelerator)
        require_labels(student, "SalunDenoiser")
        replaced = torch.from_numpy(pseudo_labels(student.classes, data.forget, data.retain))
        if not self.steps:
            return student
        masked = MaskedStep(student, self.mask(student, data.forget, seed=seed, budget=budget))
        reference = None
        if self.reference == "frozen":
            reference = copy_of_denoiser(model, accelerator).eval().requires_grad_(False)
        loss = PseudoLabelLoss(seed, replaced.to(accelerator.device), reference, budget)
        forget = self.drawn_forget(data.forget, loss)
        retain = self.drawn_retain(data.retain, self.retain_loss(seed), self.retain_weight)
        self.train(
            student,
            [[forget, retain]],
            accelerator=accelerator,
            seed=seed,
            budget=budget,
            after_step=lambda _epoch, _lr: masked(),
        )
        return student

    def mask(
        self, model: DenoisingModel, forget: IndexedImages, *, seed: int, budget: Budget
    ) -> dict[str, Tensor]:
        """Return where a weight may move: bool tensors by the names of parameters."""
        scores = guided_saliency(
            model,
            forget,
            guidance=self.guidance,
            clip=self.mask_clip,
            batch_size=self.batch_forget,
            seed=seed,
            budget=budget,
        )
        return top_mask(scores, self.keep)

    @classmethod
    def presets(cls) -> Mapping[str, Preset[SalunDenoiser]]:
        """Return published settings, converted to means over pixels, by the name of the data.

        The retained images' loss is a sum beside a mean: its weight 1e-3 is multiplied by the pixels. The
        norm that is clipped is that of the mean, and stays.
        """
        source = "SalUn, Fan et al., ICLR 2024, arXiv 2310.12508"
        cifar = cls(steps=1000, retain_weight=1e-3 * 3 * 32**2, reference="moving")
        return {"cifar10": Preset(cifar, source, "sum", 3 * 32**2)}

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-5, 1e-3),
            "steps": Choice((50, 100, 200)),
            "retain_weight": LogUniform(0.1, 10.0),
            "keep": Choice((0.1, 0.3, 0.5, 0.7, 0.9)),
        }


@dataclass(frozen=True)
class PseudoLabelLoss:
    """The distance to what a reference predicts under another label, a mean over pixels and the batch.

    Attributes:
        seed: of timesteps and noise.
        replaced: int64 ``(classes,)``, the pseudo-label of each class, on the model's device.
        reference: in evaluation mode; `None` for the model itself.
        budget: where the reference is counted.
    """

    seed: int
    replaced: Tensor
    reference: DenoisingModel | None
    budget: Budget

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch of images to forget."""
        assert isinstance(model, DenoisingModel)
        draws = DenoisingLoss(self.seed, "forget").draw(model, batch)
        noisy = model.noised(batch.inputs, draws.noise, draws.timesteps)
        self.budget.count(forward=len(batch.ids))
        reference = model if self.reference is None else self.reference
        with torch.no_grad(), evaluation_mode(reference):
            target = reference(noisy, draws.timesteps, self.replaced[batch.labels])
        return squared_error(model(noisy, draws.timesteps, batch.labels), target).mean()


def guided_saliency(
    model: DenoisingModel,
    forget: IndexedImages,
    *,
    guidance: float,
    clip: float | None,
    batch_size: int,
    seed: int,
    budget: Budget,
) -> dict[str, Tensor]:
    """Return ``|sum of clipped gradients|`` of the guided prediction's error, one gradient for each batch.

    Evaluation mode; no step is taken.

    Args:
        model: stays as it is; every weight needs a gradient.
        forget: at least one image.
        guidance: see `SalunDenoiser`.
        clip: greatest norm of each batch's gradient, over all parameters.
        batch_size: images of a batch.
        seed: of timesteps and noise.
        budget: where samples are counted, twice with guidance.

    Returns:
        Name of a parameter -> a tensor of its shape, at least 0.
    """
    parameters = dict(model.named_parameters())
    device = next(iter(parameters.values())).device
    totals = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    with evaluation_mode(model):
        for step, read in enumerate(batches_of(forget, batch_size)):
            placed = read._replace(inputs=read.inputs.to(device), labels=read.labels.to(device), step=step)
            loss = _guided_error(model, placed, guidance, seed, budget)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            present = [gradient for gradient in found if gradient is not None]
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in present]))
            factor = 1.0 if clip is None else (clip / (norm + 1e-6)).clamp(max=1.0)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    totals[name] += factor * gradient
    return {name: total.abs() for name, total in totals.items()}


def _guided_error(model: DenoisingModel, batch: Batch, guidance: float, seed: int, budget: Budget) -> Tensor:
    """Return the mean squared error of the guided prediction."""
    draws = DenoisingLoss(seed, "saliency").draw(model, batch)
    noisy = model.noised(batch.inputs, draws.noise, draws.timesteps)
    budget.count(forward=len(batch.ids), backward=len(batch.ids))
    predicted = model(noisy, draws.timesteps, batch.labels)
    if guidance != 1 and model.null_label is not None:
        budget.count(forward=len(batch.ids), backward=len(batch.ids))
        null = model(noisy, draws.timesteps, torch.full_like(batch.labels, model.null_label))
        predicted = null + guidance * (predicted - null)
    return squared_error(predicted, draws.noise).mean()
