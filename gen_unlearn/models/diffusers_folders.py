"""Read the parts of a diffusers folder in float32: local files and safetensors alone, and no code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from safetensors import SafetensorError

from gen_unlearn.models.denoiser_checks import Network
from gen_unlearn.models.unet import SemiParametricUNet2DModel
from gen_unlearn.pipelines.quiet_loading import quiet_loading

_PIPELINE = "model_index.json"
_CONFIG = "config.json"
_UNETS = {kind.__name__: kind for kind in (UNet2DModel, UNet2DConditionModel, SemiParametricUNet2DModel)}
_PARTS = {
    "unet": tuple(_UNETS),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
_UNUSED = ("scheduler", "safety_checker", "feature_extractor", "exemplars")
_SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "timestep_spacing",
    "steps_offset",
)


def folders_of_parts(folder: Path) -> dict[str, Path]:
    """Return where the parts of a pipeline lie; of a folder with a UNet alone, the folder itself.

    Raises:
        ValueError: there is no such folder, or it holds neither, or parts that are of no known kind.
    """
    if not folder.is_dir():
        raise ValueError(
            f"expected a local folder of a diffusers UNet or pipeline, found none at {folder}; save one "
            "there with save_pretrained: nothing is downloaded"
        )
    if not (folder / _PIPELINE).is_file():
        _require_files(folder, _CONFIG, f"or {_PIPELINE} of a pipeline")
        return {"unet": folder}
    parts = {}
    for name, entry in _read(folder / _PIPELINE).items():
        kind = entry[-1] if isinstance(entry, list) and entry else None
        if kind is None or name in _UNUSED:
            continue
        if kind not in _PARTS.get(name, ()):
            expected = "; ".join(f"{part} ({' or '.join(kinds)})" for part, kinds in _PARTS.items())
            raise ValueError(
                f"expected a pipeline of {expected} and a scheduler in {folder}, got {name} ({kind}); choose "
                "one that denoises with a UNet, in the layout of DDPM or of Stable Diffusion 1 or 2"
            )
        parts[name] = folder / name
    if "unet" not in parts:
        raise ValueError(f"expected a pipeline with a unet in {folder}, got {', '.join(parts) or 'none'}")
    if (folder / "scheduler").is_dir():
        parts["scheduler"] = folder / "scheduler"
    return parts


def load_unet(folder: Path) -> Network:
    """Load a UNet of any kind that adapters can be trained on.

    Raises:
        ValueError: files are missing or broken, or it is another model.
    """
    _require_files(folder, _CONFIG)
    name = _read(folder / _CONFIG).get("_class_name")
    if name not in _UNETS:
        raise ValueError(
            f"expected one of {', '.join(_UNETS)} in {folder}, got {name}; choose another network"
        )
    return _load(folder, _UNETS[name])


def load_vae(folder: Path) -> AutoencoderKL:
    """Load an autoencoder.

    Raises:
        ValueError: files are missing or broken.
    """
    _require_files(folder, _CONFIG)
    return _load(folder, AutoencoderKL)


def load_text_encoder(encoder: Path, tokenizer: Path) -> tuple[Any, Any]:
    """Load a `CLIPTextModel` and its `CLIPTokenizer`.

    Raises:
        ValueError: files are missing or broken.
    """
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging as transformers_logging

    _require_files(encoder, _CONFIG)
    _require_safetensors(encoder, "model")
    if not (tokenizer / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            _require_files(tokenizer, name)
    with _errors_of(encoder), _without_bars(transformers_logging):
        loaded: Any = CLIPTextModel.from_pretrained(
            encoder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    model, report = loaded
    _require_complete(encoder, report["missing_keys"])
    with _errors_of(tokenizer):
        return model.eval(), CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True)


def load_schedule(folder: Path, clip_sample: bool) -> DDPMScheduler:
    """Return the noise schedule that a scheduler of any kind stands for: the same betas and prediction type.

    Args:
        folder: of the scheduler.
        clip_sample: whether what is denoised lies in [-1, 1]; latents do not.

    Raises:
        ValueError: it is no schedule of betas.
    """
    name = "scheduler_config.json"
    _require_files(folder, name)
    config = _read(folder / name)
    if not {"beta_schedule", "trained_betas"} & config.keys() or config.get("use_flow_sigmas"):
        raise ValueError(
            f"expected a scheduler with a schedule of betas, such as DDPM, in {folder}, got "
            f"{config.get('_class_name')}; choose a denoiser that predicts noise or v, not a flow"
        )
    with _errors_of(folder):
        settings = {key: config[key] for key in _SCHEDULE if key in config}
        schedule = DDPMScheduler(**settings, clip_sample=clip_sample)
    if schedule.config.prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(
            f"expected a prediction_type of epsilon, v_prediction or sample in {folder}, got "
            f"{schedule.config.prediction_type}; choose another denoiser"
        )
    return schedule


def _load(folder: Path, kind: Any) -> Any:
    """Load a model of diffusers, without a progress bar."""
    _require_safetensors(folder, "diffusion_pytorch_model")
    with _errors_of(folder), quiet_loading():
        model, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    _require_complete(folder, report["missing_keys"])
    model.register_to_config(_name_or_path="")  # What is saved must not hang on where it was loaded from.
    return model


def _require_files(folder: Path, name: str, otherwise: str = "") -> None:
    if not (folder / name).is_file():
        wanted = f"{name} {otherwise}".strip()
        raise ValueError(
            f"expected {wanted} in {folder}, found none; copy the whole folder, as save_pretrained wrote it"
        )


def _require_safetensors(folder: Path, stem: str) -> None:
    """Raise a ValueError unless a folder has weights as safetensors, in one file or several with an index."""
    name = f"{stem}.safetensors"
    if (folder / name).is_file() or (folder / f"{name}.index.json").is_file():
        return
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".safetensors", ".pt"))
    raise ValueError(
        f"expected {name} in {folder}, found {', '.join(others) or 'no weights'}; save the model with "
        "save_pretrained, which writes it: other formats may run code, and are not read"
    )


def _require_complete(folder: Path, missing: Any) -> None:
    names = sorted(missing)
    if names:
        raise ValueError(
            f"expected all weights in {folder}, got none for {len(names)} tensors ({', '.join(names[:3])}), "
            "which would be random; save the complete model"
        )


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    with _errors_of(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(content).__name__}")
    return content


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Turn what libraries raise on broken files into a ValueError that names the file."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, TypeError, NotImplementedError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"cannot read {path}: {reason}; copy it again, or save it anew") from error


@contextmanager
def _without_bars(logging: Any) -> Iterator[None]:
    """Keep transformers from drawing a progress bar for reading a few local files."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
