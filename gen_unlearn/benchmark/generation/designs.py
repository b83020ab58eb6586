"""Generators that are built so that images can be deleted, as rows of the benchmark.

A design is a recipe of its own, which differs from that of the benchmark's generators in a few settings.
It is trained on all images, and its deletion is timed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gen_unlearn.benchmark.generation.trained_designs import TrainedLoraEnsemble, TrainedSemiParametric
from gen_unlearn.commands.fit import fit
from gen_unlearn.commands.trained_ensemble import TrainedEnsemble
from gen_unlearn.config import RunConfig
from gen_unlearn.core import CoreSplit, split_core
from gen_unlearn.forget import ForgetSet
from gen_unlearn.indexed_images import IndexedImages, unique_ids
from gen_unlearn.methods.budget import Cost
from gen_unlearn.pipelines.sampling import GeneratorPipeline
from gen_unlearn.pipelines.semiparametric import SemiParametricDDPMPipeline
from gen_unlearn.promises import promise_of_recipe
from gen_unlearn.receipts import Level
from gen_unlearn.recipes import recipe_adapter, validated
from gen_unlearn.repro import among


class TrainedGenerator(Protocol):
    """A generator that images can be deleted from."""

    @property
    def pipeline(self) -> GeneratorPipeline:
        """The generator as it is now, to sample from."""

    @property
    def core_ids(self) -> np.ndarray:
        """Ids of the public core, never deleted: uint8 ``(n, 16)``, sorted; none of a joint core."""

    @property
    def level(self) -> Level:
        """What its deletions promise."""

    @property
    def passes(self) -> int:
        """How many images passed the network, forward and backward, to train it."""

    def delete(self, forget: ForgetSet) -> Cost:
        """Delete images; return the seconds it took, and the images that passed a network.

        Raises:
            ValueError: an id that is not held, or of the public core; nothing is deleted.
        """


@dataclass(frozen=True)
class GeneratorDesignEntry:
    """A design of the benchmark.

    Attributes:
        name: of its row.
        settings: what differs from the recipe of the benchmark's generators, by section, as YAML gives it:
            ``{"model": {"kind": "semi-parametric"}}``. A section replaces only the keys that it names.
        sets: forget sets that it is tried on; all by default.

    Raises:
        ValueError: no name.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    sets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("expected a name of the design, got none; give it one")


def design_recipe(generator: RunConfig, entry: GeneratorDesignEntry) -> RunConfig:
    """Return the recipe of a design.

    Args:
        generator: the recipe of the benchmark's generators.
        entry: the design.

    Raises:
        ValueError: an unknown key or a value that does not fit, or the recipe of a model that nothing can be
            deleted from; the message names design and key.
    """
    origin = f"design {entry.name}"
    if "data" in entry.settings:
        raise ValueError(
            f"{origin}: data: expected the images of the benchmark, got a section of its own; take it out"
        )
    plain = recipe_adapter(RunConfig).dump_python(generator, mode="json")
    recipe: RunConfig = validated(RunConfig, _merged(plain, entry.settings), origin)
    _require_deletable_kind(recipe, origin)
    return recipe


def core_of(config: RunConfig, data: IndexedImages) -> np.ndarray:
    """Return which images are public and cannot be deleted, bool ``(n,)``: none of a joint core.

    Args:
        config: the recipe of a design.
        data: the training images. The choice can be another one without some of them: see `train_design`.

    Raises:
        ValueError: an unseen class that does not exist.
    """
    return among(data.ids, _public_ids(config, split_core(data, config.core)))


def train_design(
    config: RunConfig, data: IndexedImages, core_ids: np.ndarray | None = None
) -> TrainedGenerator:
    """Train a design.

    An image that the data repeats is one exemplar, or one record of the adapters: the weights that a core
    decides see it as often as it is there.

    Args:
        config: its recipe, with the seed.
        data: the training images.
        core_ids: ids of the public core, uint8 ``(n, 16)``; chosen as the recipe says by default. A model
            retrained without some images needs those of the one that they were deleted from: chosen again
            from the images that are left, the core could be another one.

    Raises:
        ValueError: a plain generator, or the recipe does not fit the images.
    """
    _require_deletable_kind(config, "train_design")
    parts = split_core(data, config.core, core_ids)
    trained, _ = fit(config, parts.core, parts.deletable)
    public = _public_ids(config, parts)
    passes = config.training.steps * config.training.batch_size
    if isinstance(trained, TrainedEnsemble):
        return TrainedLoraEnsemble.of(trained, parts.deletable, public, passes)
    assert isinstance(trained, SemiParametricDDPMPipeline), "other kinds were refused"
    return TrainedSemiParametric(trained, public, promise_of_recipe(config)[1], passes)


def _public_ids(config: RunConfig, parts: CoreSplit) -> np.ndarray:
    """Return the ids of the public core, uint8 ``(n, 16)``, sorted: a joint one is not public."""
    ids = parts.core.ids
    return unique_ids(ids if config.core.mode == "public" else ids[:0])


def _merged(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with some replaced; of a section that both have, only the keys that are given."""
    merged = dict(values)
    for key, given in settings.items():
        before, sections = merged.get(key), isinstance(given, dict)
        merged[key] = _merged(before, given) if sections and isinstance(before, dict) else given
    return merged


def _require_deletable_kind(config: RunConfig, origin: str) -> None:
    """Raise a ValueError for a model that nothing can be deleted from."""
    if config.model.kind == "class-conditional":
        raise ValueError(
            f"{origin}: model.kind: expected semi-parametric or adapter-ensemble, from which images can be "
            "deleted, got class-conditional; set model.kind to one of them"
        )
