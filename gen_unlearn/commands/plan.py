"""Say what an adapter ensemble costs: one that is only thought of, or that of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from gen_unlearn.adapters.families import AdaptersConfig
from gen_unlearn.adapters.family import AdapterFamily
from gen_unlearn.adapters.planning import EnsemblePlan, PlanConfig, plan
from gen_unlearn.recipes import read_yaml, recipe_adapter
from gen_unlearn.runs import RunFolder


def plan_ensemble(path: Path | None, overrides: Sequence[str]) -> EnsemblePlan:
    """Plan an ensemble, and time a fit of its family on this machine.

    Args:
        path: a run with an adapter ensemble, whose numbers are taken instead of the defaults; or `None`.
        overrides: such as ``count=1000``, see `gen_unlearn.adapters.planning.PlanConfig`.

    Raises:
        ValueError: an override is wrong, or the run has no adapters.
    """
    settings = AdaptersConfig()
    values: dict[str, Any] = {}
    if path is not None:
        run = RunFolder.open(path)
        config = _of_run(run)
        settings, values = run.classifier_config.model.adapters, asdict(config)
    config = _parsed(values, overrides)
    heads: dict[str, AdapterFamily] = {"ridge": settings.ridge, "sgd": settings.sgd}
    return plan(config, heads[config.family])


def _of_run(run: RunFolder) -> PlanConfig:
    """Return the numbers of the ensemble of a run; its imbalance is measured."""
    if run.is_ensemble and run.recipe.task == "generation":
        raise ValueError(
            f"expected an adapter ensemble that classifies to plan for, got the generator {run.path}; see "
            f"reads_per_deletion in: gen-unlearn info {run.path}"
        )
    if not run.is_ensemble:
        raise ValueError(
            f"expected an adapter ensemble to plan for, got {run.path}, a {run.recipe.model.kind} model; "
            f"leave the run out to plan a new one"
        )
    settings = run.classifier_config.model.adapters
    store = run.exemplar_folder()
    if not len(store):
        raise ValueError(f"expected images in {run.path}, got none: all were deleted; leave the run out")
    sizes = np.array(list(run.adapter_folder().sizes.values()), dtype=np.float64)
    return PlanConfig(
        count=settings.count,
        neighbours=settings.neighbours,
        images=len(store),
        features=store.code_length - settings.neighbours,
        classes=len(store.class_names),
        family=settings.family,
        imbalance=float(settings.count * (sizes**2).sum() / sizes.sum() ** 2),
        minimum_batch=settings.minimum_batch,
        deadline_days=settings.deadline_days,
    )


def _parsed(values: dict[str, Any], overrides: Sequence[str]) -> PlanConfig:
    known = [entry.name for entry in fields(PlanConfig)]
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator or name not in known:
            raise ValueError(f"expected --set KEY=VALUE with KEY out of {', '.join(known)}, got {override!r}")
        try:
            values[name] = read_yaml(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {override}: {text!r} is not a YAML value") from error
        if isinstance(values[name], bool):
            raise ValueError(f"--set {override}: {name} is not a switch")
    try:
        config: PlanConfig = recipe_adapter(PlanConfig).validate_python(values)
    except ValidationError as error:
        raise ValueError(_first_error(error, overrides)) from error
    return config


def _first_error(error: ValidationError, overrides: Sequence[str]) -> str:
    """Say what was wrong first: of one key with its value, or of several keys together."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return f"{' '.join(f'--set {override}' for override in overrides)}: {message}"
    return f"--set {first['loc'][0]}: {message}, got {first['input']!r}"
