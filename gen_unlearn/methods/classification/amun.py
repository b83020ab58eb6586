"""AMUN: train on adversarial examples of the images to forget, with the wrong labels they are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.adversarial import Norm, Stop, nearest_adversarial
from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.float_images import FloatImages
from gen_unlearn.methods.joined_images import join
from gen_unlearn.methods.logits import cross_entropy, frozen_teacher
from gen_unlearn.methods.loop import LoopSettings, batches_of
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData


@dataclass(frozen=True, kw_only=True)
class Amun(LoopSettings):
    """Fine-tune on the nearest adversarial example of every image to forget (arXiv 2503.00917).

    The labels are those that the original gives to the adversarial examples. So the model becomes less sure
    around the images to forget and changes little elsewhere.

    Attributes:
        train_on: the adversarial examples with the retained images, in mixed batches, or they alone.
        epsilon: first radius of the search, for images in [0, 1].
        doublings: how often it is doubled at most.
        attack_steps: steps of the attack for every radius, each a tenth of it.
        norm: what the radius is measured in.
        stop: see `gen_unlearn.methods.adversarial.pgd`.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    train_on: Literal["forget_and_retain", "forget"] = "forget_and_retain"
    epsilon: float = 0.1
    doublings: int = 6
    attack_steps: int = 50
    norm: Norm = "l2"
    stop: Stop = "first_wrong"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.epsilon > 0 or self.doublings < 0 or self.attack_steps < 1:
            raise ValueError(
                "expected epsilon above 0, doublings from 0 and attack_steps from 1, "
                f"got {self.epsilon}, {self.doublings} and {self.attack_steps}"
            )

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model, trained on adversarial examples."""
        student = copy_of(model, accelerator)
        inputs, labels = self.adversarial(model, data.forget, accelerator, budget)
        targets, floats = replace(data.forget, labels=labels), FloatImages.one_each(inputs)
        if self.train_on == "forget":
            term = self.forget_term(targets, cross_entropy, floats=floats)
        else:
            term = self.retain_term(join(targets, data.retain), cross_entropy, floats=floats)
        self.run(student, lambda _: [[term]], accelerator=accelerator, seed=seed, budget=budget)
        return student

    def adversarial(
        self, model: nn.Module, forget: IndexedImages, accelerator: Accelerator, budget: Budget
    ) -> tuple[Tensor, np.ndarray]:
        """Return the nearest adversarial example of every image, and its wrong label.

        Returns:
            Images on the CPU, float32 ``(n, channels, height, width)``, and labels, int64 ``(n,)``.

        Raises:
            ValueError: the largest radius is too small for an image.
        """
        teacher = frozen_teacher(model).to(accelerator.device)
        inputs, labels, missing = [], [], 0
        for batch in batches_of(forget, self.batch_forget):
            found = nearest_adversarial(
                teacher,
                batch.inputs.to(accelerator.device),
                batch.labels.to(accelerator.device),
                epsilon=self.epsilon,
                doublings=self.doublings,
                steps=self.attack_steps,
                norm=self.norm,
                stop=self.stop,
                budget=budget,
            )
            inputs.append(found.inputs.cpu())
            labels.append(found.predicted.cpu())
            missing += int((~found.found).sum())
        if missing:
            raise ValueError(
                f"expected an adversarial example of each of {len(forget)} images, found none for {missing} "
                f"within {self.epsilon * 2**self.doublings:g}; raise epsilon or doublings"
            )
        return torch.cat(inputs), torch.cat(labels).numpy()

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {"lr": LogUniform(1e-4, 1e-1), "epochs": Choice((3, 5, 10))}
