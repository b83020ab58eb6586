"""DINOv2, or any other vision model of transformers, from a local folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModel

from gen_unlearn.metrics.extractors.module import ModuleFeatures, output_dim
from gen_unlearn.metrics.extractors.preprocessing import IMAGENET_224, ImagePreprocessing, as_rgb
from gen_unlearn.metrics.weights import file_sha256
from gen_unlearn.repro import digest_bytes

_SIZE_SETTINGS = ("do_resize", "size", "resample", "do_center_crop", "crop_size")


def vision_model_features(
    folder: Path,
    preprocessing: ImagePreprocessing | None = None,
    device: torch.device | str = "cpu",
) -> ModuleFeatures:
    """Load a vision model that transformers saved, with its features of whole images, in float32.

    They are taken from the last hidden state: the class token where the model has one (for DINOv2 and ViT
    behind the last normalisation), else the mean over all positions.

    Args:
        folder: with ``config.json`` and safetensors files, as `save_pretrained` writes them.
        preprocessing: from images to inputs; without it, the folder's ``preprocessor_config.json`` decides.
        device: where the model runs.

    Raises:
        ValueError: the folder lacks files, the weights are incomplete, or the model takes no images.
    """
    require_model_files(folder, ["config.json"] + ["preprocessor_config.json"] * (preprocessing is None))
    used = preprocessing or _ProcessorPreprocessing.load(folder)
    model = PooledModel(load_image_model(folder)).to(device).eval()
    name = f"{model.network.config.model_type} {folder.resolve().name} (not comparable with Inception FID)"
    return ModuleFeatures(model, name, output_dim(model, used), used, weights_digest=_folder_digest(folder))


def dinov2_features(folder: Path, device: torch.device | str = "cpu") -> ModuleFeatures:
    """Load DINOv2 for FD-DINOv2 (Stein et al. 2023): 224 x 224 bicubic without a crop, the class token.

    The published distances use DINOv2 ViT-L/14, which transformers calls ``facebook/dinov2-large``. Its
    position embeddings are resized a little differently from the authors' own code.

    Args:
        folder: as in `vision_model_features`.
        device: where the model runs.

    Raises:
        ValueError: as in `vision_model_features`.
    """
    return vision_model_features(folder, IMAGENET_224, device)


@dataclass(frozen=True, eq=False)
class _ProcessorPreprocessing:
    """Preprocess as an image processor of transformers does, on Pillow images."""

    processor: Any
    resize: str
    description: str

    @classmethod
    def load(cls, folder: Path) -> _ProcessorPreprocessing:
        """Load the processor of a folder; Pillow's resize is the one that models were trained with."""
        processor = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
        settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        size = {key: settings[key] for key in _SIZE_SETTINGS if key in settings}
        return cls(
            processor,
            f"transformers, on pillow: {json.dumps(size, sort_keys=True)}",
            f"transformers, on pillow: {json.dumps(settings, sort_keys=True)}",
        )

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Map a uint8 image, grey or RGB, to a float32 tensor ``(3, h, w)``."""
        inputs = self.processor(as_rgb(image), return_tensors="pt", input_data_format="channels_last")
        return inputs.pixel_values[0].float()


class PooledModel(nn.Module):
    """Reduce the last hidden state of a vision model to one vector per image.

    It is the class token where the model has one, else the mean over all positions.

    Args:
        network: a model of transformers that takes `pixel_values`.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        names = {name.rpartition(".")[2] for name, _ in network.named_parameters()}
        self.has_class_token = not names.isdisjoint({"cls_token", "class_embedding"})

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs ``(n, 3, h, w)`` to features ``(n, dim)``."""
        hidden = self.network(pixel_values=inputs).last_hidden_state
        if hidden.ndim == 4:  # (n, dim, h, w), of convolutional networks
            return hidden.mean(dim=(2, 3))
        return hidden[:, 0] if self.has_class_token else hidden.mean(dim=1)


def load_image_model(folder: Path) -> Any:
    """Load a vision model that transformers saved, in float32.

    Args:
        folder: with ``config.json`` and safetensors files, as `save_pretrained` writes them.

    Raises:
        ValueError: weights are missing (other than a pooling layer's), or the model takes no images.
    """
    model, report = AutoModel.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,  # else transformers asks on the terminal whether to run the folder's code
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
    )
    # A pooling layer that a checkpoint lacks is not used here.
    missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)
    if missing:
        raise ValueError(
            f"expected all weights of {type(model).__name__} in {folder}, got none for {len(missing)} "
            f"tensors ({', '.join(missing[:3])}), which would be random; save the complete model"
        )
    require_image_model(model, folder)
    return model


def require_image_model(model: Any, folder: Path) -> None:
    """Raise a ValueError unless a model of transformers, described in `folder`, takes images."""
    if model.main_input_name != "pixel_values":
        raise ValueError(
            f"expected a model of images in {folder}, got {type(model).__name__}, which takes "
            f"{model.main_input_name}; save its vision part alone"
        )


def require_model_files(folder: Path, names: list[str]) -> None:
    """Raise a ValueError unless a folder holds the named files and a safetensors file."""
    missing = [name for name in names if not (folder / name).is_file()]
    missing += [] if any(folder.glob("*.safetensors")) else ["*.safetensors"]
    if missing:
        raise ValueError(
            f"expected a folder that transformers' save_pretrained wrote, found no {', '.join(missing)} in "
            f"{folder}; name a local folder with --weights FOLDER: nothing is downloaded"
        )


def _folder_digest(folder: Path) -> str:
    """Return the SHA-256 over the configuration and the safetensors files of a model, in name order."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return digest_bytes(*(file_sha256(file).encode() for file in files))
