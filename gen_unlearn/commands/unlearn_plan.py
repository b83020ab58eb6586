"""Plan approximate unlearning: of what, by which method, of which images. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from gen_unlearn.commands.requests import ForgetRequest
from gen_unlearn.commands.unet_checkpoint import UNetCheckpoint
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import IndexedImages
from gen_unlearn.methods.classification.table import build_method as classification_method
from gen_unlearn.methods.diffusion.table import build_method as diffusion_method
from gen_unlearn.methods.method import UnlearningMethod
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.processes import process_state
from gen_unlearn.recipes import apply_override, recipe_adapter
from gen_unlearn.runs import RunFolder

Origin = TypeVar("Origin", bound=RunFolder | UNetCheckpoint)


@dataclass(frozen=True)
class UnlearningPlan(Generic[Origin]):
    """What is to be done; making one checks that it can be.

    Attributes:
        origin: the trained run, or the checkpoint.
        name: of the method.
        method: with its settings.
        forget: what to forget.
        data: the same images with their pixels, and the other training images.
        out: the folder to write, of the same kind.
        seed: of everything random in the method.
    """

    origin: Origin
    name: str
    method: UnlearningMethod
    forget: ForgetSet
    data: UnlearnData
    out: Path
    seed: int = 0

    def __post_init__(self) -> None:
        if "heldout" in self.method.needs:
            raise ValueError(
                f"expected a method that needs no held-out images, got {self.name}: {self.origin.path} has "
                "none, or only those it is judged by; choose another method"
            )
        if not len(self.data.retain):
            raise ValueError(
                f"expected images that are retained, got none: all of {self.origin.path} are to be "
                "forgotten; delete it"
            )
        if self.out.exists() or self.out.is_symlink():
            raise ValueError(f"expected a new folder, got {self.out}, which exists; choose another --out")
        if (processes := process_state().num_processes) > 1:
            raise ValueError(f"unlearning runs in one process so far, got {processes}")

    @property
    def kind(self) -> str:
        """What is unlearned and written: a ``"run"`` or a ``"checkpoint"``."""
        return "run" if isinstance(self.origin, RunFolder) else "checkpoint"

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of the method, as YAML would give them."""
        settings: dict[str, Any] = recipe_adapter(type(self.method)).dump_python(self.method, mode="json")
        return settings

    @property
    def per_class(self) -> dict[str, int]:
        """Number of images to forget by class, without classes that have none."""
        data = self.data.forget
        counts = np.bincount(data.labels, minlength=len(data.class_names)).tolist()
        return {name: count for name, count in zip(data.class_names, counts, strict=True) if count}

    def facts(self) -> dict[str, Any]:
        """Return what would be done, for people and for ``--json``."""
        data = {"data": self.origin.source} if isinstance(self.origin, UNetCheckpoint) else {}
        return {
            self.kind: str(self.origin.path),
            **data,
            "out": str(self.out),
            "method": self.name,
            "settings": self.settings,
            "seed": self.seed,
            "level": "approximate",
            "would_forget": self.per_class,
            "would_retain": len(self.data.retain),
        }


def plan_unlearning(
    origin: Origin, name: str, overrides: Sequence[str], request: ForgetRequest, out: Path, seed: int = 0
) -> UnlearningPlan[Origin]:
    """Find the method and the images, and check that it can be done. Nothing is written.

    Args:
        origin: a run of a class-conditional generator or of a parametric classifier, or a checkpoint.
        name: of the method.
        overrides: settings of it, such as ``steps=100``.
        request: what to forget; `like`, `near_duplicates` and `skip_unknown` are not asked for here.
        out: the folder to write.
        seed: of everything random in the method.

    Raises:
        ValueError: images can be deleted from the run exactly, it was unlearned before or is an oracle; there
            is no such method or setting; nothing to forget, or something that is no training image; the
            run's source has changed since the training, or that of a checkpoint does not fit; `out` exists,
            or lies in the checkpoint.
    """
    classifies = False
    if isinstance(origin, RunFolder):
        require_parametric(origin)
        classifies = origin.recipe.task == "classification"
    elif out.resolve().is_relative_to(origin.path.resolve()) and not out.exists():
        raise ValueError(f"expected a folder outside of {origin.path}, got {out}; choose another --out")
    build = classification_method if classifies else diffusion_method
    method = build(name, _settings(overrides))
    train = origin.load_images() if isinstance(origin, UNetCheckpoint) else _images_of(origin)
    forget = find(train, request)
    return UnlearningPlan(origin, name, method, forget, divided(train, forget), out, seed)


def _images_of(run: RunFolder) -> IndexedImages:
    """Return the images that a run was trained on."""
    train = run.split_core(run.load_split().train).core
    if run.key.seal("data", train.digest) != run.manifest.data_digest:
        raise ValueError(
            f"expected the images that {run.path} was trained on at {run.recipe.data.source}, got others; "
            "put them back: they are what is retained"
        )
    return train


def require_parametric(run: RunFolder) -> None:
    """Refuse a run that has a better way to forget, or whose training images are not all of its source's.

    Raises:
        ValueError: so it is.
    """
    if run.has_exemplars:
        raise ValueError(
            f"images are deleted exactly from {run.path}, a {run.recipe.model.kind} model: "
            f"gen-unlearn forget {run.path}"
        )
    if (before := run.manifest.unlearned) is not None:
        raise ValueError(
            f"{run.path} was unlearned before, with {before.method}; name everything that is to be "
            "forgotten, and start from the run that it was made from"
        )
    if run.manifest.without is not None:
        raise ValueError(
            f"expected a run that was trained on all images, got the oracle {run.path}, which never saw some"
        )


def _settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Return settings of a method, such as ``steps=100``, as YAML gives them."""
    settings: dict[str, Any] = {}
    for override in overrides:
        if not override.partition("=")[1]:
            raise ValueError(f"expected --set setting=value, such as --set lr=1e-4, got {override!r}")
        apply_override(settings, override)
    return settings


def find(train: IndexedImages, request: ForgetRequest) -> ForgetSet:
    """Find what is asked for among training images.

    Raises:
        ValueError: nothing is asked for, or something that is not there.
    """
    found = []
    if request.classes:
        reason = f"class {', '.join(request.classes)}"
        found.append(ForgetSet.from_classes(train, request.classes, reason))
    if request.images:
        found.append(ForgetSet.from_images(train, request.images, "image files"))
    if request.ids:
        found.append(ForgetSet.from_ids(train, request.ids, "ids"))
    found += [ForgetSet.from_file(train, path, "a list") for path in request.lists]
    if request.fraction is not None:
        reason = f"random share {request.fraction:g}, seed {request.seed}"
        found.append(ForgetSet.from_fraction(train, request.fraction, request.seed, reason=reason))
    if not found:
        raise ValueError("nothing is asked for; name a class, an image, an id, a list or a fraction")
    forget = found[0]
    for other in found[1:]:
        forget = forget.union(other)
    return replace(forget, reason=request.reason) if request.reason else forget


def divided(train: IndexedImages, forget: ForgetSet) -> UnlearnData:
    """Divide training images into those to forget and all others. No image is held out."""
    leaving = forget.mask(train.ids)
    none = train.select(np.empty(0, dtype=np.int64))
    return UnlearnData(train.select(np.flatnonzero(leaving)), train.select(np.flatnonzero(~leaving)), none)
