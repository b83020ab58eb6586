"""What decides the adapters of a run, apart from its records."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from gen_unlearn.adapters.family import PixelFamily
from gen_unlearn.adapters.promise import fit_here, promised_level
from gen_unlearn.adapters.recipe import EnsembleRecipe, ensemble_recipe
from gen_unlearn.adapters.routing import Keys
from gen_unlearn.classifier_config import ClassifierRunConfig
from gen_unlearn.metrics.weights import file_sha256
from gen_unlearn.receipts import Level
from gen_unlearn.repro import digest_json
from gen_unlearn.runs import RunFolder

if TYPE_CHECKING:
    from gen_unlearn.models.frozen_denoiser import FrozenDenoiser

_WEIGHTS = "diffusion_pytorch_model.safetensors"
"""As diffusers names the file, which takes seconds to import."""


def require_ensemble(run: RunFolder) -> None:
    """Raise a ValueError unless a run is an adapter ensemble."""
    if not run.is_ensemble:
        raise ValueError(
            f"expected an adapter ensemble, got {run.path}, a {run.recipe.model.kind} model: it has no "
            f"adapters to rebuild; a deletion from a semi-parametric model is complete at once"
        )


def recipe_of(run: RunFolder) -> EnsembleRecipe:
    """Return what decides the adapters of a run; no network is loaded until adapters are fit.

    Raises:
        ValueError: the run is no adapter ensemble, or its keys are not there.
    """
    require_ensemble(run)
    config, names = run.recipe, run.exemplar_folder().class_names
    if isinstance(config, ClassifierRunConfig):
        return ensemble_recipe(config, _keys(run, run.classifier_path), names)
    from gen_unlearn.adapters.lora_recipe import lora_recipe
    from gen_unlearn.pipelines.lora_loading import load_lora_backbone

    frozen = {name: digest for name, digest in _expected_files(run).items() if _is_of_denoiser(run, name)}

    @cache
    def denoiser() -> FrozenDenoiser:
        for name, digest in frozen.items():
            _require_unchanged(run.path / name, digest)
        return load_lora_backbone(run.model_path).denoiser

    keys, shape = _keys(run, run.router_path), run.exemplar_folder().image_shape
    return lora_recipe(config, keys, names, shape, digest_json(frozen), denoiser)


def level_of(run: RunFolder) -> Level:
    """Return what a run that is an adapter ensemble promises now.

    It is tried out whether bits repeat, unless that takes a training of denoisers and a rebuilding did so.
    """
    recipe, waiting = recipe_of(run), bool(run.adapter_folder().waiting)
    last = run.ledger.entries[-1]
    receipt = run.filed_receipt(last) if last.kind == "rebuilt" else None
    here = fit_here(run.ledger.environments, run.fitting_device)
    if receipt is not None and here and isinstance(recipe.family, PixelFamily):
        return receipt.level
    return promised_level(recipe.keys.source, recipe.family, waiting, run.ledger.environments, recipe.shape)


def _keys(run: RunFolder, folder: Path) -> Keys:
    """Read the keys of the adapters, without the encoder beside them."""
    path = folder / _WEIGHTS
    try:
        _require_unchanged(path, _expected_files(run).get(path.relative_to(run.path).as_posix()))
        with safe_open(path, framework="numpy") as tensors:
            return Keys(tensors.get_tensor("key_codes"), run.recipe.model.adapters.keys)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no keys of adapters: {error}") from error


def _expected_files(run: RunFolder) -> Mapping[str, str]:
    return run.ledger.entries[0].files or {}


def _is_of_denoiser(run: RunFolder, name: str) -> bool:
    """Tell of an unchanging file, by its path in the run, whether the frozen denoiser is loaded from it."""
    path = run.path / name
    return path.is_relative_to(run.model_path) and not path.is_relative_to(run.router_path)


def _require_unchanged(path: Path, expected: str | None) -> None:
    if file_sha256(path) != expected:
        raise ValueError(f"{path} was changed since the training; nothing was changed; put it back")
