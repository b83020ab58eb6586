"""SalUn: random labels that move only the weights which matter for what is forgotten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from accelerate import Accelerator
from torch import nn

from gen_unlearn.methods.budget import Budget
from gen_unlearn.methods.classification.random_labels import RandomLabels
from gen_unlearn.methods.masked_step import MaskedStep
from gen_unlearn.methods.method import copy_of
from gen_unlearn.methods.saliency import SaliencyKind, Scope, saliency, top_mask
from gen_unlearn.methods.search_space import Choice, LogUniform, Space
from gen_unlearn.methods.unlearn_data import Part, UnlearnData
from gen_unlearn.training.classification_batches import Augmentation


@dataclass(frozen=True, kw_only=True)
class SaliencyUnlearning(RandomLabels):
    """Train by random labels, on the most salient weights of the original (Fan et al., arXiv 2310.12508).

    Attributes:
        keep: share of the weights that may move; 1 is `RandomLabels`.
        saliency: how a weight's importance for the images to forget is measured, see
            `gen_unlearn.methods.saliency`.
        scope: whether weights compete with all others or with those of their own tensor.
        saliency_augment: random changes of images while the saliency is measured.
    """

    needs: ClassVar[frozenset[Part]] = frozenset({"forget", "retain"})
    deterministic: ClassVar[bool] = False
    keep: float = 0.5
    saliency: SaliencyKind = "abs_sum"
    scope: Scope = "global"
    saliency_augment: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.keep <= 1:
            raise ValueError(f"expected keep from 0 to 1, got {self.keep}")

    def __call__(
        self, model: nn.Module, data: UnlearnData, *, accelerator: Accelerator, seed: int, budget: Budget
    ) -> nn.Module:
        """Return a copy of the model in which the other weights are those of the original, to the bit."""
        student = copy_of(model, accelerator)
        scores = saliency(
            student,
            data.forget,
            self.saliency,
            batch_size=self.batch_forget,
            accelerator=accelerator,
            budget=budget,
            augment=self.saliency_augment,
            seed=seed,
        )
        masked = MaskedStep(student, top_mask(scores, self.keep, self.scope), self.freeze_bn_stats)
        passes = self.passes(data, seed)
        self.run(
            student,
            lambda _: passes,
            accelerator=accelerator,
            seed=seed,
            budget=budget,
            after_step=lambda _epoch, _lr: masked(),
        )
        return student

    @classmethod
    def search_space(cls) -> Mapping[str, Space]:
        """Return what a search may change."""
        return {
            "lr": LogUniform(5e-4, 1e-1),
            "keep": Choice((0.1, 0.3, 0.5, 0.7, 0.9)),
            "epochs": Choice((3, 5, 10)),
        }
