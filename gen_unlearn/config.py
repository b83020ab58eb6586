"""Recipes: YAML files that describe a run completely, checked at the door."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gen_unlearn.classifier_config import NOT_IN_THE_DIGEST, ClassifierRunConfig
from gen_unlearn.core import CoreConfig
from gen_unlearn.data import DataConfig
from gen_unlearn.metrics.protocol import ComparisonConfig, EvaluationConfig
from gen_unlearn.models.denoiser_config import DenoiserConfig
from gen_unlearn.pipelines.noise_config import NoiseConfig
from gen_unlearn.pipelines.sampling_config import SamplingConfig
from gen_unlearn.recipes import apply_override, check_keys, read_recipe, read_yaml, recipe_yaml, validated
from gen_unlearn.repro import digest_json
from gen_unlearn.training.diffusion_config import TrainingConfig


@dataclass(frozen=True)
class RunConfig:
    """A complete recipe of a generator.

    Attributes:
        task: tells it from the recipe of a classifier.
        data: the images.
        model: the denoiser.
        core: which images the weights may see.
        noise: the noise schedule it is trained with.
        training: how it is trained.
        sampling: how images are sampled from it.
        evaluation: how it is judged.
        seed: seed of the initial weights and of everything random in training.
    """

    data: DataConfig
    model: DenoiserConfig
    task: Literal["generation"] = "generation"
    core: CoreConfig = field(default_factory=CoreConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.core.mode == "public" and self.model.kind == "class-conditional":
            raise ValueError(
                "core.mode public needs a semi-parametric model or an adapter-ensemble, got class-conditional"
            )
        if self.core.mode != "public" and self.model.kind == "adapter-ensemble":
            raise ValueError(
                f"model.kind adapter-ensemble needs core.mode public, got {self.core.mode}: its backbone and "
                "its keys stay as they are after a deletion, so they must never have seen a deletable image"
            )
        if self.model.pixel_fusion_width and self.noise.prediction_type != "epsilon":
            raise ValueError(
                "model.pixel_fusion_width needs noise.prediction_type epsilon, "
                f"got {self.noise.prediction_type}"
            )
        if self.training.reorientation and self.model.of_backbone.kind != "semi-parametric":
            raise ValueError("training.reorientation needs exemplars: set model.kind to semi-parametric")
        steps = self.sampling.num_inference_steps
        if steps > self.noise.num_train_timesteps:
            raise ValueError(
                f"sampling.num_inference_steps ({steps}) is more than noise.num_train_timesteps "
                f"({self.noise.num_train_timesteps})"
            )

    @property
    def starts_from(self) -> dict[str, str]:
        """Where first weights come from, by the key of the recipe that names them."""
        named = {
            "model.weights": self.model.weights,
            "model.router.encoder.weights": self.model.router.encoder.weights,
        }
        if self.model.kind != "adapter-ensemble":
            return {}
        return {key: value for key, value in named.items() if value is not None}

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides the trained model: data, model, core, noise, training, seed."""
        fields = dataclasses.asdict(self)
        for training in (fields["training"], fields["model"]["router"]["training"]):
            for name in NOT_IN_THE_DIGEST:
                del training[name]
        if self.model.kind != "adapter-ensemble":  # As before there was such a thing, so that digests stay.
            for name in ("backbone", "weights", "prompt", "router", "adapters"):
                del fields["model"][name]
        if not self.model.pixel_fusion_width:  # As before there was such a thing, so that digests stay.
            del fields["model"]["pixel_fusion_width"]
        if not self.training.reorientation:
            del fields["training"]["reorientation"]
        if self.training.exemplar_refresh_steps == 1:
            del fields["training"]["exemplar_refresh_steps"]
        if not self.training.compile:
            del fields["training"]["compile"]
        names = ["data", "model", "noise", "training", "seed"]
        if self.core.mode == "public":
            names.append("core")
        return digest_json({name: fields[name] for name in names})

    def to_yaml(self) -> str:
        """Return the recipe with every value spelled out."""
        return recipe_yaml(self)


Recipe = RunConfig | ClassifierRunConfig


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides such as ``training.images=2000``.

    Raises:
        ValueError: the file or an override is not a valid recipe; the message names the key.
    """
    return parse_config(read_recipe(path, overrides), str(path))


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the recipe of a generator, as `load_recipe`.

    Raises:
        ValueError: also for the recipe of a classifier.
    """
    recipe = load_recipe(path, overrides)
    if not isinstance(recipe, RunConfig):
        raise ValueError(f"expected the recipe of a generator, got {path} for {recipe.task}")
    return recipe


def parse_config(recipe: dict[str, Any], origin: str) -> Recipe:
    """Validate a recipe; unknown keys are errors. `origin` is named in messages."""
    kinds: dict[Any, type] = {"generation": RunConfig, "classification": ClassifierRunConfig}
    task = recipe.get("task", "generation")
    if not isinstance(task, str) or task not in kinds:
        raise ValueError(f"{origin}: task: expected one of {', '.join(kinds)}, got {task!r}")
    kind = kinds[task]
    parsed: Recipe = validated(kind, recipe, origin)
    return parsed


def comparison_config(overrides: Sequence[str]) -> ComparisonConfig:
    """Return how sets of images are compared, with overrides such as ``evaluation.comparison.seed=1``.

    Raises:
        ValueError: an override is not a valid one of the section ``evaluation.comparison``.
    """
    recipe: dict[str, Any] = {}
    for override in overrides:
        if not override.startswith("evaluation.comparison."):
            raise ValueError(
                f"expected --set evaluation.comparison.KEY=VALUE where there is no run, got {override!r}"
            )
        apply_override(recipe, override)
    check_keys(RunConfig, recipe, "--set")
    evaluation: EvaluationConfig = validated(EvaluationConfig, recipe.get("evaluation", {}), "--set")
    return evaluation.comparison


def with_overrides(config: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return a recipe with some values replaced."""
    recipe = read_yaml(config.to_yaml())
    for override in overrides:
        apply_override(recipe, override)
    return parse_config(recipe, "--set")
