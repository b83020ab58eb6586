"""What a benchmark found, by forget set, method and metric: the input of its tables, pages and plots."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeAlias

from gen_unlearn.benchmark.catalogue import Role
from gen_unlearn.benchmark.statistics import LEAST_SEEDS_TO_RANK, row_means, seed_estimate

ORIGINAL: Final = "original"
"""Name of the row of the original model, which is also that of doing nothing."""

RETRAINED: Final = "retrained"
"""Name of the row of the retrained model."""

SECOND_RETRAINED: Final = "second retrained"
"""Name of the row of the second retrained model, whose distances to the first are the floor."""

Kind: TypeAlias = Literal["reference", "method", "design"]
Regime: TypeAlias = Literal["benchmark", "deployment"]

_ROUNDING = 1e-9  # differences below this, relative to the values, are none


@dataclass(frozen=True)
class Cell:
    """One metric of one method on one forget set.

    Attributes:
        value: mean over the training seeds.
        half_width: half the width of its 95 % interval, `None` at one training seed.
        floor: for a distance or score, the mean of the second retrained model's over the same seeds; for a
            level, the mean of the retrained model's. Of a whole pool always the value of the second
            retrained one. `None` if there is none.
        values: for each training seed the mean over its unlearning seeds.
        seeds: the training seeds, ascending.
        sigma_train: standard deviation between training seeds.
        sigma_unlearn: standard deviation between unlearning seeds, `None` where there is one each.
        excess_half_width: half the width of the 95 % interval of the paired difference ``value - floor``.
        note: what else to know.
        models: models behind a value of a whole pool, which has no values by seed.
    """

    value: float
    half_width: float | None
    floor: float | None
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    sigma_train: float | None = None
    sigma_unlearn: float | None = None
    excess_half_width: float | None = None
    note: str | None = None
    models: int | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or (self.floor is not None and not math.isfinite(self.floor)):
            raise ValueError(
                f"expected a finite value and floor, got {self.value} and {self.floor}; "
                "record such a run as failed"
            )
        if len(self.values) != len(self.seeds):
            raise ValueError(f"expected a value for each of {len(self.seeds)} seeds, got {len(self.values)}")

    def indistinguishable(self, role: Role) -> bool:
        """Say whether the value cannot be told from retraining's, at three training seeds or more.

        A distance cannot if it is at or below its floor, or the interval of ``value - floor`` includes 0; a
        score likewise from above; a level if the interval of its difference to retraining includes 0. It is
        never better than retraining.
        """
        if role == "cost" or self.floor is None or (self.models or len(self.seeds)) < LEAST_SEEDS_TO_RANK:
            return False
        excess = self.value - self.floor
        excess = {"distance": excess, "score": -excess, "level": abs(excess)}[role]
        slack = _ROUNDING * max(abs(self.value), abs(self.floor))
        return excess <= (self.excess_half_width or 0.0) + slack


def summarise_cell(
    values_by_seed: Mapping[int, Sequence[float]],
    floor_by_seed: Mapping[int, float] | None,
    note: str | None = None,
) -> Cell:
    """Summarise one metric of one method over its seeds.

    Args:
        values_by_seed: training seed -> values by unlearning seed; one value of a deterministic method.
        floor_by_seed: training seed -> the same distance or score of the second retrained model, or the level
            of the retrained one; seeds that have no value are left out.
        note: what else to know.

    Raises:
        ValueError: there is no value, one is not finite, or a seed has no floor although others have.
    """
    seeds = tuple(sorted(values_by_seed))
    rows = [list(values_by_seed[seed]) for seed in seeds]
    estimate, means = seed_estimate(rows), tuple(float(mean) for mean in row_means(rows))
    floor, excess_half_width = None, None
    if floor_by_seed is not None:
        missing = [seed for seed in seeds if seed not in floor_by_seed]
        if missing:
            raise ValueError(
                f"expected a floor for each training seed, got none for {missing}; run the second retrained "
                "model at these seeds, or leave them out"
            )
        floor = seed_estimate([[floor_by_seed[seed]] for seed in seeds]).mean
        pairs = zip(seeds, means, strict=True)
        excess_half_width = seed_estimate([[mean - floor_by_seed[seed]] for seed, mean in pairs]).half_width
    return Cell(
        estimate.mean,
        estimate.half_width,
        floor,
        means,
        seeds,
        estimate.sigma_train,
        estimate.sigma_unlearn,
        excess_half_width,
        note,
    )


@dataclass(frozen=True)
class MethodSummary:
    """What one method, or one reference model, did on one forget set.

    Attributes:
        name: of the method, unique in its set.
        kind: a reference model, a gradient-based method, or a model that is designed to forget.
        settings: hyper-parameters, JSON-able.
        cells: metric id -> its cell; costs are ``cost.passes`` and ``cost.seconds``.
        failed: a reason for each failed run, such as ``"seed 3: the loss is not finite"``.
        search_passes: sample passes of the search relative to one retraining, in per cent; `None` if nothing
            was searched.
        infeasible: no trial of the search came within the tolerance.
        search_notes: what else to know of the search, such as how many trials failed.
    """

    name: str
    kind: Kind
    settings: Mapping[str, Any] = field(default_factory=dict)
    cells: Mapping[str, Cell] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    search_passes: float | None = None
    infeasible: bool = False
    search_notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SetSummary:
    """All methods on one forget set.

    Attributes:
        forget_set: its name.
        forget_digests: digests of the forget sets, one or one for each training seed.
        methods: the references and methods, in the order in which they are shown.
    """

    forget_set: str
    forget_digests: tuple[str, ...]
    methods: tuple[MethodSummary, ...]

    def method(self, name: str) -> MethodSummary | None:
        """Return the method of a name, or `None` if it is not there."""
        return next((method for method in self.methods if method.name == name), None)


@dataclass(frozen=True)
class BenchmarkSummary:
    """A whole benchmark.

    Attributes:
        name: of the benchmark.
        recipe_digest: SHA-256 of its recipe.
        regime: whether retrained models were at hand for tuning; the two are never mixed in a table.
        seeds: what was repeated how often, such as ``{"train": 10, "unlearn": 2}``.
        sets: the forget sets.
        environment: versions and hardware.
        notes: what else to know.
    """

    name: str
    recipe_digest: str
    regime: Regime
    seeds: Mapping[str, int]
    sets: tuple[SetSummary, ...]
    environment: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as a JSON-able dictionary."""
        return asdict(self)

    def as_json(self) -> str:
        """Return the summary as JSON text."""
        return json.dumps(self.as_dict(), indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> BenchmarkSummary:
        """Return the summary that `as_dict` wrote.

        Raises:
            ValueError: an entry is missing or is not known.
        """
        try:
            sets = tuple(_set_summary(each) for each in content["sets"])
            return cls(**{**content, "sets": sets, "notes": tuple(content["notes"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected a benchmark summary as this version writes it: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> BenchmarkSummary:
        """Return the summary that `as_json` wrote."""
        return cls.from_dict(json.loads(text))


def _set_summary(content: Mapping[str, Any]) -> SetSummary:
    methods = tuple(_method_summary(each) for each in content["methods"])
    return SetSummary(**{**content, "methods": methods, "forget_digests": tuple(content["forget_digests"])})


def _method_summary(content: Mapping[str, Any]) -> MethodSummary:
    cells = {
        metric: Cell(**{**cell, "values": tuple(cell["values"]), "seeds": tuple(cell["seeds"])})
        for metric, cell in content["cells"].items()
    }
    texts = {name: tuple(content.get(name, ())) for name in ("failed", "search_notes")}
    return MethodSummary(**{**content, "cells": cells, **texts})
