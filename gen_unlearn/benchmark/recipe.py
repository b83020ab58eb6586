"""The recipe of a benchmark: what is trained, what is forgotten, by which methods, how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from gen_unlearn.benchmark.catalogue import metric_definition
from gen_unlearn.benchmark.classifier_training import TrainingRecipe
from gen_unlearn.benchmark.designs import DesignKind, build_design
from gen_unlearn.benchmark.entries import MethodEntry, SearchConfig, require_distinct
from gen_unlearn.benchmark.forget_sets import ForgetSetConfig
from gen_unlearn.benchmark.networks import NetworkConfig
from gen_unlearn.benchmark.splits import SplitConfig
from gen_unlearn.data import DataConfig
from gen_unlearn.methods.classification.table import build_method
from gen_unlearn.metrics.margins import ScoreName
from gen_unlearn.recipes import read_recipe, recipe_adapter, recipe_yaml, validated
from gen_unlearn.repro import digest_json


@dataclass(frozen=True)
class ForgetEntry:
    """One forget set of a benchmark.

    Attributes:
        name: of its tables.
        choose: what is forgotten.
        seed: of the choice.
        outside_core: share of the training images, by a hash of their ids, that is a public core and is never
            forgotten, so that designs with such a core can take part; for random images.
    """

    name: str
    choose: ForgetSetConfig
    seed: int = 0
    outside_core: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.outside_core < 1:
            raise ValueError(f"expected outside_core from 0 to below 1, got {self.outside_core}")
        if self.outside_core and self.choose.kind != "random":
            raise ValueError(f"expected outside_core of random images, got {self.choose.kind}")


@dataclass(frozen=True)
class DesignEntry:
    """One model that is designed to forget.

    Attributes:
        design: its kind, see `gen_unlearn.benchmark.designs`.
        settings: that differ from the defaults of the kind.
        name: of its row; the kind by default.
        sets: names of the forget sets it is run on; all by default.
    """

    design: DesignKind
    settings: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    sets: tuple[str, ...] | None = None

    @property
    def row(self) -> str:
        """Name of its row."""
        return self.name or self.design


@dataclass(frozen=True)
class MeasureConfig:
    """What is measured.

    Attributes:
        retained_images: retained images that predictions are compared on, drawn once; all if there are fewer.
        scores: of the population attacks.
        functional: linear probe and relearning, which train every model further.
        table: metrics that tables show, by id; all of them are in the summary.
    """

    retained_images: int = 5000
    scores: tuple[ScoreName, ...] = ("margin", "modified_entropy")
    functional: Literal["none", "probe-and-relearn"] = "probe-and-relearn"
    table: tuple[str, ...] = (
        "acc.forget",
        "acc.retain",
        "acc.test",
        "mia_pop.margin.auc",
        "rmia.ratio.auc",
        "ulira.loo.auc",
        "js.forget",
        "pg_h.test",
        "avg_gap.optml",
        "cost.passes",
        "cost.seconds",
    )

    @property
    def decisive(self) -> dict[str, Any]:
        """What decides the numbers, and not how they are shown."""
        return {name: value for name, value in asdict(self).items() if name != "table"}

    def __post_init__(self) -> None:
        if self.retained_images < 2:
            raise ValueError(f"expected at least 2 retained_images, got {self.retained_images}")
        for metric in self.table:
            metric_definition(metric)


@dataclass(frozen=True)
class BenchmarkRecipe:
    """A complete benchmark.

    Attributes:
        name: for people.
        data: the images; all of `data.source`, split anew, unless there is a test source.
        split: how they are divided.
        network: what is trained.
        training: how it is trained.
        forget_sets: what is forgotten, each on its own.
        methods: the methods.
        designs: models that are designed to forget.
        seeds: training seeds; each has an original and two retrained models of every forget set.
        unlearn_seeds: runs of a method on each original; a deterministic method has one.
        search: how hyper-parameters are searched.
        cap: most sample passes of a method, as a share of those of retraining; `None` for no limit.
        measure: what is measured.
        seed: added to all training seeds.
    """

    name: str
    data: DataConfig
    split: SplitConfig
    training: TrainingRecipe
    forget_sets: tuple[ForgetEntry, ...]
    methods: tuple[MethodEntry, ...]
    network: NetworkConfig = field(default_factory=NetworkConfig)
    designs: tuple[DesignEntry, ...] = ()
    seeds: int = 10
    unlearn_seeds: int = 1
    search: SearchConfig = field(default_factory=SearchConfig)
    cap: float | None = None
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.unlearn_seeds < 1:
            raise ValueError(
                f"expected seeds and unlearn_seeds of at least 1, got {self.seeds} and {self.unlearn_seeds}"
            )
        if self.cap is not None and not self.cap > 0:
            raise ValueError(f"expected a cap above 0, or none, got {self.cap}")
        entries: tuple[MethodEntry | DesignEntry, ...] = (*self.methods, *self.designs)
        rows = [(entry.row, entry.sets) for entry in entries]
        require_distinct([entry.name for entry in self.forget_sets], rows)
        for method in self.methods:
            build_method(method.method, method.settings)
        for design in self.designs:
            build_design(design.design, design.settings, self.network)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the whole recipe."""
        return digest_json(recipe_adapter(BenchmarkRecipe).dump_python(self, mode="json"))

    def to_yaml(self) -> str:
        """Return the recipe with every value spelled out."""
        return recipe_yaml(self)


def load_benchmark(path: Path, overrides: Sequence[str] = ()) -> BenchmarkRecipe:
    """Read a benchmark's recipe and apply overrides such as ``seeds=3``.

    Raises:
        ValueError: the file or an override is not a valid recipe; the message names the key.
    """
    recipe: BenchmarkRecipe = validated(BenchmarkRecipe, read_recipe(path, overrides), str(path))
    return recipe
