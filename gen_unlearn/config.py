"""Recipes: YAML files that describe a run completely, checked at the door."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from gen_unlearn.classifier_config import NOT_IN_THE_DIGEST, ClassifierRunConfig
from gen_unlearn.core import CoreConfig
from gen_unlearn.data import DataConfig
from gen_unlearn.metrics.protocol import ComparisonConfig, EvaluationConfig
from gen_unlearn.models.denoiser import DenoiserConfig
from gen_unlearn.pipelines.denoising import NoiseConfig
from gen_unlearn.pipelines.sampling import SamplingConfig
from gen_unlearn.recipes import recipe_adapter, recipe_yaml
from gen_unlearn.repro import digest_json
from gen_unlearn.training.diffusion import TrainingConfig


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
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"there is no recipe {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} is not a recipe: expected sections such as data and model")
    for override in overrides:
        _apply_override(recipe, override)
    return parse_config(recipe, str(path))


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
    _check_keys(kind, recipe, origin, "")
    try:
        parsed: Recipe = recipe_adapter(kind).validate_python(recipe)
    except ValidationError as error:
        raise ValueError(_first_error(origin, error)) from error
    return parsed


def _first_error(origin: str, error: ValidationError) -> str:
    """Say in one line what was wrong first."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
    return ": ".join(part for part in (origin, place, f"{message}{given}") if part)


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
        _apply_override(recipe, override)
    _check_keys(RunConfig, recipe, "--set", "")
    try:
        evaluation: EvaluationConfig = recipe_adapter(EvaluationConfig).validate_python(
            recipe.get("evaluation", {})
        )
    except ValidationError as error:
        raise ValueError(_first_error("--set", error)) from error
    return evaluation.comparison


def with_overrides(config: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return a recipe with some values replaced."""
    recipe = yaml.safe_load(config.to_yaml())
    for override in overrides:
        _apply_override(recipe, override)
    return parse_config(recipe, "--set")


def _apply_override(recipe: dict[str, Any], override: str) -> None:
    """Set one ``a.b=value`` in a nested dictionary; the value is read as YAML."""
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise ValueError(f"expected --set section.key=value, got {override!r}")
    section = recipe
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ValueError(f"cannot set {path}: {key} is a value, not a section")
    try:
        section[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {override}: {text!r} is not a YAML value") from error


def _check_keys(kind: type, values: dict[str, Any], origin: str, place: str) -> None:
    """Refuse what pydantic would take: unknown keys, switches for numbers, numbers that are not finite."""
    hints = typing.get_type_hints(kind)
    known = [entry.name for entry in dataclasses.fields(kind)]
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
            raise ValueError(f"{origin}: unknown key {place}{key}; {hint}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{origin}: {place}{key} must be finite, got {value}")
        if isinstance(value, bool) and hints[key] is not bool:
            raise ValueError(f"{origin}: {place}{key} is not a switch, got {str(value).lower()}")
        if isinstance(value, dict) and (nested := _dataclass_in(hints[key])) is not None:
            _check_keys(nested, value, origin, f"{place}{key}.")


def _dataclass_in(hint: Any) -> Any:
    """Return the dataclass that a field's type is, possibly optional."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)
