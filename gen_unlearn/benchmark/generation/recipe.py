"""The recipe of a benchmark of generators: what is trained and forgotten, by which methods, how often."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from gen_unlearn.benchmark.entries import MethodEntry, SearchConfig, require_distinct
from gen_unlearn.benchmark.forget_sets import ForgetSetConfig
from gen_unlearn.benchmark.generation.designs import GeneratorDesignEntry, design_recipe
from gen_unlearn.benchmark.generation.observation import GenerationMeasureConfig
from gen_unlearn.benchmark.splits import SplitConfig
from gen_unlearn.config import RunConfig
from gen_unlearn.methods.diffusion.table import build_method
from gen_unlearn.recipes import recipe_adapter, recipe_yaml
from gen_unlearn.repro import digest_json

_LEAST_RING = 3
"""Models of which each can be compared with the next, and no pair of them twice."""


@dataclass(frozen=True)
class GenerationForgetEntry:
    """One forget set of a benchmark of generators.

    Attributes:
        name: of its tables.
        choose: what is forgotten: a class, random images, or a file of ids.
        seed: of the choice.
        repeats: how often each forgotten image is among the training images. Many make a generator learn it
            by heart, as in the study of SISS (arXiv 2503.01034).
        outside_core_of: name of a design, whose public core, which is never forgotten, has none of the
            images; for random ones.
    """

    name: str
    choose: ForgetSetConfig
    seed: int = 0
    repeats: int = 1
    outside_core_of: str | None = None

    def __post_init__(self) -> None:
        if self.choose.kind not in ("class", "random", "file"):
            raise ValueError(
                f"{self.name}: expected a class, random images or a file, got {self.choose.kind}"
            )
        if self.repeats < 1:
            raise ValueError(f"{self.name}: expected repeats of at least 1, got {self.repeats}")
        if self.outside_core_of is not None and self.choose.kind != "random":
            raise ValueError(
                f"{self.name}: expected outside_core_of for random images, got {self.choose.kind}"
            )


@dataclass(frozen=True)
class GenerationSearchConfig(SearchConfig):
    """How settings are searched, see `SearchConfig`; levels are logarithms of losses, in percent.

    Attributes:
        images: of each part that losses are taken on, at most.
        draws: noises and timesteps of each image.
    """

    pilot_seeds: int = 1
    tolerance: float = 5.0
    images: int = 100
    draws: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 1 or self.draws < 1:
            raise ValueError(f"expected images and draws of at least 1, got {self.images} and {self.draws}")


@dataclass(frozen=True)
class GenerationRecipe:
    """A complete benchmark of generators.

    Attributes:
        name: for people.
        task: tells it from the recipe of a benchmark of classifiers.
        generator: the plain generator that methods are applied to: images, model, training, sampling, judge.
            Its seed is not used.
        split: how many images are held out of the training images, and how many are for testing, if there
            are none of their own.
        forget_sets: what is forgotten, each on its own.
        methods: the methods.
        designs: models that are designed to forget.
        seeds: training seeds; each has an original and a retrained model of every forget set.
        search: how hyper-parameters are searched.
        cap: most sample passes of a method, as a share of those of retraining; `None` for no limit.
        measure: what is measured.
        seed: added to all training seeds.
    """

    name: str
    task: Literal["generation"]
    generator: RunConfig
    split: SplitConfig
    forget_sets: tuple[GenerationForgetEntry, ...]
    methods: tuple[MethodEntry, ...]
    designs: tuple[GeneratorDesignEntry, ...] = ()
    seeds: int = 3
    search: GenerationSearchConfig = field(default_factory=GenerationSearchConfig)
    cap: float | None = None
    measure: GenerationMeasureConfig = field(default_factory=GenerationMeasureConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"expected seeds of at least 1, got {self.seeds}")
        if self.cap is not None and not self.cap > 0:
            raise ValueError(f"expected a cap above 0, or none, got {self.cap}")
        if self.generator.model.kind != "class-conditional":
            raise ValueError(
                "expected generator.model.kind class-conditional, which methods are applied to, got "
                f"{self.generator.model.kind}; make it one of the designs"
            )
        if self.split.wrong_labels:
            raise ValueError(f"expected no wrong_labels of generators, got {self.split.wrong_labels}")
        rows = [(entry.row, entry.sets) for entry in self.methods]
        rows += [(design.name, design.sets) for design in self.designs]
        require_distinct([entry.name for entry in self.forget_sets], rows)
        for method in self.methods:
            build_method(method.method, method.settings)
        for design in self.designs:
            design_recipe(self.generator, design)
        for entry in self.forget_sets:
            if entry.outside_core_of is not None:
                self.design(entry.outside_core_of)

    def design(self, name: str) -> GeneratorDesignEntry:
        """Return the design of a name.

        Raises:
            ValueError: there is none.
        """
        for entry in self.designs:
            if entry.name == name:
                return entry
        raise ValueError(f"expected the name of one of the designs, got {name!r}")

    @property
    def retrained_seeds(self) -> int:
        """How many seeds have retrained models, whose ring gives every seed its second one, of the next seed.

        A ring of fewer than three would take a pair twice: few seeds have one more.
        """
        return max(self.seeds, min(self.seeds + 1, _LEAST_RING))

    @property
    def retraining_passes(self) -> int:
        """How many images pass the network, forward and backward, to train it."""
        training = self.generator.training
        return training.steps * training.batch_size

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the recipe, but for what decides no generator, see `RunConfig.digest`."""
        whole = recipe_adapter(GenerationRecipe).dump_python(self, mode="json")
        generator = {name: whole["generator"][name] for name in ("sampling", "evaluation")}
        return digest_json(whole | {"generator": generator | {"trained": self.generator.digest}})

    def to_yaml(self) -> str:
        """Return the recipe with every value spelled out."""
        return recipe_yaml(self)
