"""The logits of a model on the sets that a benchmark measures on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from safetensors.numpy import load_file, save_file
from torch import nn

from gen_unlearn.benchmark.classifier_training import logits_of
from gen_unlearn.benchmark.forget_sets import ForgetCase
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.repro import keyed_order

SetName = Literal["forget", "retain", "heldout", "test", "forget_class_test"]
Logits = Mapping[SetName, np.ndarray]
"""Set -> logits, float32 ``(n, classes)``."""


@dataclass(frozen=True, eq=False)
class MeasuredSets:
    """The images that models are measured on, by set.

    Attributes:
        images: a set without images is not there.
        forgotten_classes: the classes that are forgotten as a whole.
    """

    images: Mapping[SetName, IndexedImages]
    forgotten_classes: tuple[int, ...]

    @classmethod
    def of(cls, case: ForgetCase, retained_images: int) -> MeasuredSets:
        """Return the sets of a forget set.

        Test images of forgotten classes are a set of their own. Held-out images are all there: an attack
        compares forgotten images with held-out ones of their class.

        Args:
            case: the forget set.
            retained_images: how many retained images to measure on, chosen by a hash of their ids.
        """
        retain, test = case.retain_images, case.splits.test
        chosen = np.sort(keyed_order(retain.ids, "measured")[:retained_images])
        images: dict[SetName, IndexedImages] = {
            "forget": case.forget_images,
            "retain": retain.select(chosen),
            "heldout": case.splits.heldout,
            "test": test.select(~case.test_forgotten),
            "forget_class_test": test.select(case.test_forgotten),
        }
        gone = np.setdiff1d(case.forget_images.labels, retain.labels)
        return cls({name: part for name, part in images.items() if len(part)}, tuple(gone.tolist()))

    def labels(self, name: SetName) -> np.ndarray:
        """Return the labels of a set, int64 ``(n,)``."""
        return self.images[name].labels

    def logits(self, model: nn.Module) -> Logits:
        """Return the logits of a model on all sets."""
        return {name: logits_of(model, images) for name, images in self.images.items()}


def save_logits(path: Path, logits: Logits) -> None:
    """Write logits in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    save_file({name: np.ascontiguousarray(values) for name, values in logits.items()}, unfinished)
    unfinished.rename(path)


def read_logits(path: Path) -> Logits:
    """Return what `save_logits` wrote.

    Raises:
        ValueError: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"expected the logits of a model in {path}, found none; run the benchmark again")
    found = load_file(path)
    return {name: found[name] for name in get_args(SetName) if name in found}
