"""The forget sets of the classification benchmark, each with the training labels it implies."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from gen_unlearn.atomic import write_text
from gen_unlearn.benchmark.memorisation import MemorisationScores, read_scores
from gen_unlearn.benchmark.splits import Splits, with_wrong_labels
from gen_unlearn.data import IndexedImages
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import unique_ids
from gen_unlearn.methods.unlearn_data import UnlearnData
from gen_unlearn.repro import ids_from_hex, ids_to_hex, keyed_order

Kind = Literal["class", "subclass", "random", "memorised", "canary", "file"]

_FIELDS: dict[str, tuple[str, ...]] = {
    "class": ("classes",),
    "subclass": ("classes", "coarse"),
    "random": ("count", "fraction"),
    "memorised": ("fraction", "path"),
    "canary": ("count",),
    "file": ("path",),
}


@dataclass(frozen=True)
class ForgetSetConfig:
    """What is to be forgotten.

    Attributes:
        kind: ``"class"``, all training images of `classes`; ``"subclass"``, the same while the model
            predicts the coarser classes of `coarse`; ``"random"``, `count` images or a `fraction` of them;
            ``"memorised"``, the `fraction` with the highest scores of memorisation, those of the file `path`
            or given by the caller; ``"canary"``, `count` images that get a wrong label before the original
            is trained; ``"file"``, the ids that the file `path` lists.
        classes: names of the classes to forget; fine ones for a subclass.
        coarse: the names of the fine classes of each coarse class; every fine class is in one.
        count: number of distinct images.
        fraction: share of the distinct images, above 0 and below 1.
        path: a JSON file, see `write_forget_set` and `gen_unlearn.benchmark.memorisation.write_scores`.
    """

    kind: Kind
    classes: tuple[str, ...] = ()
    coarse: dict[str, tuple[str, ...]] = field(default_factory=dict)
    count: int | None = None
    fraction: float | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in _FIELDS:
            raise ValueError(f"expected kind to be one of {list(_FIELDS)}, got {self.kind!r}")
        used = _FIELDS[self.kind]
        given = [
            name
            for name in ("classes", "coarse", "count", "fraction", "path")
            if getattr(self, name) not in (None, (), {})
        ]
        if extra := [name for name in given if name not in used]:
            raise ValueError(f"expected only {list(used)} for a {self.kind} forget set, got {extra} too")
        needed = {"random": (), "memorised": ("fraction",)}.get(self.kind, used)
        if missing := [name for name in needed if name not in given]:
            raise ValueError(f"expected {list(needed)} for a {self.kind} forget set, {missing} is not set")
        if self.kind == "random" and len(given) != 1:
            raise ValueError(f"expected count or fraction for a random forget set, got {given}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"expected count of at least 1, got {self.count}")
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise ValueError(f"expected fraction above 0 and below 1, got {self.fraction}")


@dataclass(frozen=True, eq=False)
class ForgetCase:
    """A forget set, and the images with the labels that the original is trained with.

    Attributes:
        splits: as given, but with wrong labels of canaries and coarse labels of subclasses.
        forget: the ids to forget, all of training images.
        test_forgotten: bool ``(test images,)``, which are of a forgotten class or subclass.
        heldout_forgotten: bool ``(held-out images,)``, the same of the held-out images.

    Raises:
        ValueError: an id that is not in the training images, or nothing is left to retain.
    """

    splits: Splits
    forget: ForgetSet
    test_forgotten: np.ndarray
    heldout_forgotten: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.retain_images):
            raise ValueError("expected images to retain, got a forget set of all training images")

    @cached_property
    def forget_images(self) -> IndexedImages:
        """The images to forget."""
        return self.splits.train.select(self.splits.train.rows_of(self.forget.ids))

    @cached_property
    def retain_images(self) -> IndexedImages:
        """All other training images."""
        return self.splits.train.without(self.forget)

    def unlearn_data(self) -> UnlearnData:
        """Return what a method may see: images to forget, to retain and held out, but none for testing."""
        return UnlearnData(forget=self.forget_images, retain=self.retain_images, heldout=self.splits.heldout)


def draw_forget_set(
    config: ForgetSetConfig, splits: Splits, seed: int, scores: MemorisationScores | None = None
) -> ForgetCase:
    """Choose what is forgotten, and relabel the images where the kind asks for it.

    Args:
        config: the kind.
        splits: the images, with fine labels.
        seed: of random and canary forget sets.
        scores: of the memorised images, unless `config.path` names a file of them.

    Raises:
        ValueError: unknown classes or ids, a file of other data, a missing score, or nothing to retain.
    """
    nowhere = (np.zeros(len(splits.test), dtype=bool), np.zeros(len(splits.heldout), dtype=bool))
    train = splits.train
    if config.kind in ("class", "subclass"):
        forget = ForgetSet.from_classes(train, config.classes, f"{config.kind} {', '.join(config.classes)}")
        indices = [train.class_index(name) for name in config.classes]
        parts = (np.isin(splits.test.labels, indices), np.isin(splits.heldout.labels, indices))
        return ForgetCase(coarsen_splits(splits, config.coarse) if config.coarse else splits, forget, *parts)
    if config.kind == "canary":
        assert config.count is not None, "checked by ForgetSetConfig"
        splits, forget = _plant_canaries(splits, config.count, seed)
    elif config.kind == "random":
        forget = _random(train, config, seed)
    elif config.kind == "memorised":
        forget = _memorised(train, config, scores)
    else:
        assert config.path is not None, "checked by ForgetSetConfig"
        forget = read_forget_set(Path(config.path), train)
    return ForgetCase(splits, forget, *nowhere)


def coarsen_splits(splits: Splits, coarse: dict[str, tuple[str, ...]]) -> Splits:
    """Replace all labels by those of coarser classes.

    Args:
        splits: the images, with fine labels.
        coarse: the names of the fine classes of each coarse class.

    Raises:
        ValueError: a fine class that is in no coarse one or in several, or one that does not exist.
    """
    names, fine = splits.train.class_names, [name for members in coarse.values() for name in members]
    if sorted(fine) != sorted(names):
        raise ValueError(
            f"expected each of the classes {sorted(names)} in one coarse class, got {sorted(fine)}"
        )
    of_fine = {name: index for index, members in enumerate(coarse.values()) for name in members}
    renumbered = np.array([of_fine[name] for name in names], dtype=np.int64)

    def relabel(images: IndexedImages) -> IndexedImages:
        return replace(images, labels=renumbered[images.labels], class_names=tuple(coarse))

    return replace(
        splits, train=relabel(splits.train), heldout=relabel(splits.heldout), test=relabel(splits.test)
    )


def write_forget_set(path: Path, forget: ForgetSet, train: IndexedImages) -> None:
    """Write a forget set as JSON: the digest of the training images, and the ids in hexadecimal."""
    content = {"data": train.digest, "reason": forget.reason, "ids": ids_to_hex(forget.ids)}
    write_text(path, json.dumps(content, indent=0) + "\n")


def read_forget_set(path: Path, train: IndexedImages) -> ForgetSet:
    """Read what `write_forget_set` wrote, for the same training images with the same labels.

    Raises:
        ValueError: a file that is not such JSON, of other data, or with an id that is not in the data.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest, reason = str(content["data"]), str(content.get("reason", path.name))
        ids = ids_from_hex(content["ids"])
    except (OSError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"expected JSON with data and ids, got {path}: {error}; write it with write_forget_set"
        ) from error
    _require_digest(digest, train, path.name)
    return ForgetSet.from_ids(train, ids, reason)


def _random(train: IndexedImages, config: ForgetSetConfig, seed: int) -> ForgetSet:
    """Choose images by a hash of the seed and the id; more images contain fewer."""
    if config.fraction is not None:
        return ForgetSet.from_fraction(train, config.fraction, seed)
    ids = unique_ids(train.ids)
    assert config.count is not None, "checked by ForgetSetConfig"
    if config.count > len(ids):
        raise ValueError(f"expected at most {len(ids)} images to forget, got count {config.count}")
    return ForgetSet(ids[keyed_order(ids, seed, "forget")[: config.count]], f"random {config.count}")


def _memorised(train: IndexedImages, config: ForgetSetConfig, scores: MemorisationScores | None) -> ForgetSet:
    """Choose the images with the highest scores."""
    if (scores is None) == (config.path is None):
        raise ValueError(
            "expected scores of memorisation either from the caller or from path, got both or none"
        )
    if scores is None:
        scores = read_scores(Path(str(config.path)))
    _require_digest(scores.data, train, "the scores of memorisation")
    assert config.fraction is not None, "checked by ForgetSetConfig"
    reason = f"the {config.fraction:g} most memorised"
    return ForgetSet.from_ids(train, scores.most_memorised(config.fraction), reason)


def _plant_canaries(splits: Splits, count: int, seed: int) -> tuple[Splits, ForgetSet]:
    """Give images with a right label a wrong one; they are what is forgotten."""
    train = splits.train
    right = np.ones(len(train), dtype=bool)
    right[train.rows_of(splits.mislabelled)] = False
    relabelled, canaries = with_wrong_labels(train.select(right), count, seed)
    labels = train.labels.copy()
    labels[right] = relabelled.labels
    mislabelled = unique_ids(np.concatenate([splits.mislabelled, canaries]))
    planted = replace(splits, train=replace(train, labels=labels), mislabelled=mislabelled)
    return planted, ForgetSet(canaries, f"{count} canaries")


def _require_digest(digest: str, train: IndexedImages, what: str) -> None:
    """Raise a ValueError unless something belongs to these training images."""
    if digest != train.digest:
        raise ValueError(
            f"expected {what} of the data {train.digest[:12]}, got that of {digest[:12]}; "
            f"make it again from these splits"
        )
