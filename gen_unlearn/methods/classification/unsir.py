"""UNSIR: impair a class with noise that was learned against it, then repair the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.float_images import FloatImages
from gen_unlearn.methods.joined_images import join
from gen_unlearn.methods.logits import cross_entropy, frozen_teacher, logits
from gen_unlearn.methods.loop import LoopSettings
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.repro import ID_BYTES, derive_seed, keyed_order, numpy_generator, torch_generator


@dataclass(frozen=True, kw_only=True)
class Unsir(LoopSettings):
    """Unlearn whole classes with error-maximising noise (Tarun et al., arXiv 2111.08947).

    Of the images to forget only the labels are read: all images of these classes are to be forgotten.

    Attributes:
        lr: of impairing.
        epochs: of impairing.
        repair_lr: of repairing.
        repair_epochs: of repairing; 0 leaves it out.
        noise_images: noise images that are learned for every class.
        noise_steps: steps of Adam they are learned in.
        noise_lr: of these steps.
        penalty: weight of the squared length of a noise image, which is in units of images in [-1, 1].
        copies: how often each noise image is seen in an epoch of impairing.
        retain_per_class: most retained images of a class that are seen in an epoch.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    lr: float = 1e-4
    epochs: int = 1
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    repair_lr: float = 1e-4
    repair_epochs: int = 1
    noise_images: int = 32
    noise_steps: int = 25
    noise_lr: float = 0.1
    penalty: float = 0.1
    copies: int = 80
    retain_per_class: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("repair_lr", "noise_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} above 0, got {getattr(self, name)}")
        for name in ("noise_images", "copies", "retain_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        for name in ("noise_steps", "repair_epochs", "penalty"):
            if getattr(self, name) < 0:
                raise ValueError(f"expected {name} of at least 0, got {getattr(self, name)}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model, impaired and repaired.

        Raises:
            ValueError: images of a class to forget are retained.
        """
        check_whole_classes(data)
        student = copy_of(model, accelerator)
        noise, labels = self.noise(model, data.forget, accelerator, seed, budget)
        subset = self._subset(data.retain, seed)
        order = np.tile(np.arange(len(noise)), self.copies)
        empty = np.zeros((len(noise), *data.forget.image_shape), dtype=np.uint8)
        ids = numpy_generator(seed, "noise ids").integers(0, 256, (len(noise), ID_BYTES), dtype=np.uint8)
        places = IndexedImages(empty, labels, ids, data.forget.class_names, ("noise",) * len(noise))
        impair = self.retain_term(
            join(places.select(order), subset), cross_entropy, floats=FloatImages(noise, order)
        )
        self.run(student, lambda _: [[impair]], accelerator=accelerator, seed=seed, budget=budget)
        if self.repair_epochs:
            settings = replace(self, lr=self.repair_lr, epochs=self.repair_epochs)
            repair, own = self.retain_term(subset, cross_entropy), derive_seed(seed, "unsir repair")
            settings.run(student, lambda _: [[repair]], accelerator=accelerator, seed=own, budget=budget)
        return student

    def noise(
        self, model: nn.Module, forget: IndexedImages, accelerator: Accelerator, seed: int, budget: Budget
    ) -> tuple[Tensor, np.ndarray]:
        """Return the noise of every class to forget: what the original takes least for that class.

        It minimises ``-CE(f(z), class) + penalty * |z|^2``, the mean over images, from normal noise.

        Returns:
            Noise, float32 ``(n, channels, height, width)`` on the CPU, and its classes, int64 ``(n,)``.
        """
        teacher = frozen_teacher(model).to(accelerator.device)
        height, width, channels = forget.image_shape
        classes = np.unique(forget.labels)
        found = []
        for label in classes.tolist():
            start = torch.randn(
                (self.noise_images, channels, height, width), generator=torch_generator(seed, "noise", label)
            )
            found.append(self._learned(teacher, start.to(accelerator.device), label, budget).cpu())
        return torch.cat(found), np.repeat(classes, self.noise_images)

    def _learned(self, teacher: nn.Module, start: Tensor, label: int, budget: Budget) -> Tensor:
        """Return the noise of one class."""
        noise = start.requires_grad_(True)
        optimizer = torch.optim.Adam([noise], self.noise_lr)
        labels = torch.full((len(noise),), label, device=noise.device)
        for _ in range(self.noise_steps):
            budget.count(forward=len(noise), backward=len(noise))
            length = noise.square().flatten(1).sum(dim=1).mean()
            loss = self.penalty * length - F.cross_entropy(logits(teacher, noise).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return noise.detach()

    def _subset(self, retain: IndexedImages, seed: int) -> IndexedImages:
        """Return at most `retain_per_class` images of every class, chosen by their ids and the seed."""
        order = keyed_order(retain.ids, seed, "unsir subset")
        labels = retain.labels[order]
        chosen = [order[labels == label][: self.retain_per_class] for label in np.unique(labels)]
        return retain.select(np.sort(np.concatenate(chosen)))

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(1e-5, 1e-1),
            "repair_lr": LogUniform(1e-5, 1e-1),
            "retain_per_class": Choice((500, 1000)),
        }


def check_whole_classes(data: UnlearnData) -> None:
    """Raise a ValueError unless the images to forget are all training images of their classes."""
    left = np.isin(data.retain.labels, data.forget.labels)
    if left.any():
        label = int(data.retain.labels[left][0])
        raise ValueError(
            f"expected all images of the classes to forget, but {int(left.sum())} are retained, the first of "
            f"class {data.retain.class_names[label]!r}; UNSIR unlearns whole classes: choose another method "
            "for this request"
        )
