"""Published networks as encoders: the classifiers of torchvision, the vision models of transformers."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen_unlearn.metrics.extractors.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from gen_unlearn.models.resnet import Encoder

ImageShape = tuple[int, int, int]
"""Channels, height and width of an image."""

_HEADS = ("fc", "classifier", "head", "heads")
"""Where torchvision's classifiers keep their head: a linear layer, or a sequence that ends in one."""

_AUXILIARY_HEADS = ("googlenet", "inception_v3")
"""Classifiers with several heads, which return a tuple in training."""

_NOT_OF_THE_ENCODER = ("_name_or_path", "id2label", "label2id")
"""Entries of a configuration that name a folder of somebody's machine, or the classes of a head."""


class TorchvisionEncoder(Encoder):
    """Encode with a classifier of torchvision, without its last linear layer.

    Images are normalised with the mean and standard deviation of ImageNet inside, and grey ones are repeated
    to three channels.

    Args:
        name: as `torchvision.models.get_model` knows it.

    Raises:
        ValueError: there is no such classifier, or it does not end in a linear layer.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        from torchvision.models import get_model

        _require_name(name)
        self.name = name
        self.normalise = _ImageNetNormalisation()
        self.network: nn.Module = get_model(name, weights=None)
        self.head, self.out_dim = _remove_head(self.network, name)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to features ``(batch, out_dim)``."""
        return self.network(self.normalise(images))

    def network_state(self, state: MutableMapping[str, Tensor]) -> MutableMapping[str, Tensor]:
        """Return a published state dict without the head, under the names of this network.

        Only the weight and bias of the removed layer are dropped, where they are there at all. Those of a
        DenseNet get the names that torchvision gives them when it loads them.

        Args:
            state: the state dict; it is changed.
        """
        for kind in ("weight", "bias"):
            state.pop(f"{self.head}.{kind}", None)
        for key in [key for key in state if re.search(r"denselayer\d+\.(?:norm|conv)\.[12]\.", key)]:
            state[re.sub(r"(norm|conv)\.([12])", r"\1\2", key)] = state.pop(key)
        return state


class TransformersEncoder(Encoder):
    """Encode with a vision model of transformers: its class token, or the mean over all positions.

    Images are normalised with the mean and standard deviation of ImageNet inside, and grey ones are repeated
    to three channels. A pooling layer with weights, which the features do not pass, is left out.

    Args:
        settings: the model's configuration, see `transformers_settings`.
        image_shape: ``(channels, height, width)`` of the images.

    Raises:
        ValueError: transformers knows no such model, or it does not take such images.
    """

    def __init__(self, settings: Mapping[str, Any], image_shape: ImageShape) -> None:
        super().__init__()
        self.normalise = _ImageNetNormalisation()
        with torch.device("meta"):
            trial = _pooled(_from_settings(settings)).eval()
        self.out_dim = trial_dim(trial, (3, *image_shape[1:]), str(settings.get("model_type")))
        self.network = _pooled(_from_settings(settings))

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` in [-1, 1] to features ``(batch, out_dim)``."""
        return self.network(self.normalise(images))


def transformers_settings(folder: Path) -> dict[str, Any]:
    """Return the configuration of a model that transformers saved, as JSON values; weights are not read.

    Raises:
        ValueError: the folder lacks files, or the model takes no images or needs code of the folder.
    """
    from transformers import AutoConfig, AutoModel

    from gen_unlearn.metrics.extractors.vision_model import require_image_model, require_model_files

    require_model_files(folder, ["config.json"])
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        require_image_model(AutoModel.from_config(config, trust_remote_code=False), folder)
    settings = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in settings.items() if key not in _NOT_OF_THE_ENCODER}


def transformers_state(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a model that transformers saved, named as in `TransformersEncoder.network`.

    Raises:
        ValueError: the folder lacks files, or the weights are incomplete.
    """
    from gen_unlearn.metrics.extractors.vision_model import load_image_model, require_model_files

    require_model_files(folder, ["config.json"])
    return _pooled(load_image_model(folder)).state_dict()


def published_at(name: str) -> str:
    """Return the address of torchvision's weights of a classifier, or of its list if it has none."""
    from torchvision.models import get_model_weights

    default = getattr(get_model_weights(name), "DEFAULT", None)
    return "https://pytorch.org/vision/stable/models.html" if default is None else default.url


def trial_dim(network: nn.Module, image_shape: ImageShape, what: str) -> int:
    """Return how many values a network gives for one image, without computing them.

    Args:
        network: in evaluation mode, with all its tensors on the meta device.
        image_shape: ``(channels, height, width)`` of the input.
        what: the network, for messages.

    Raises:
        ValueError: the network does not take such images.
    """
    try:
        with torch.no_grad(), torch.device("meta"):
            return network(torch.zeros(1, *image_shape)).shape[1]
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"expected a network that takes images of {image_shape[1]} x {image_shape[2]} pixels, got "
            f"{what}: {str(error).strip().splitlines()[-1]}; resize the images or choose another network"
        ) from error


class _ImageNetNormalisation(nn.Module):
    """Bring images from [-1, 1] to zero mean and unit variance over ImageNet, and to three channels."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, 1 or 3, height, width)`` to ``(batch, 3, height, width)``."""
        return images * self.scale + self.shift


def _require_name(name: str) -> None:
    """Raise a ValueError that lists close names unless torchvision has a classifier of that name."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        close = difflib.get_close_matches(name.lower(), names, n=5, cutoff=0.5) or names
        raise ValueError(
            f"expected the name of a classifier of torchvision, got {name!r}; "
            f"choose one of {', '.join(close)}"
        )
    if name in _AUXILIARY_HEADS:
        raise ValueError(
            f"expected a classifier with one head, got {name}, which has auxiliary ones; "
            "choose another one, such as resnet18, mobilenet_v3_small or efficientnet_b0"
        )


def _remove_head(network: nn.Module, name: str) -> tuple[str, int]:
    """Replace the last linear layer by the identity; return where it was and the length of its input."""
    for attribute in _HEADS:
        owner, path, layer = network, attribute, getattr(network, attribute, None)
        if isinstance(layer, nn.Sequential) and len(layer):
            last, child = list(layer.named_children())[-1]
            owner, path, layer = layer, f"{attribute}.{last}", child
        if isinstance(layer, nn.Linear):
            setattr(owner, path.rpartition(".")[2], nn.Identity())
            return path, layer.in_features
    raise ValueError(
        f"expected a classifier that ends in a linear layer, at {' or '.join(_HEADS)}, got {name}; "
        "choose another one, such as resnet18, mobilenet_v3_small or efficientnet_b0"
    )


def _from_settings(settings: Mapping[str, Any]) -> Any:
    """Build a model of transformers in float32 from its configuration, with fresh weights."""
    from transformers import AutoConfig, AutoModel

    rest = {key: value for key, value in settings.items() if key != "model_type"}
    config = AutoConfig.for_model(str(settings.get("model_type")), **rest)
    return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)


def _pooled(model: Any) -> nn.Module:
    """Return a model behind the reduction to one vector, without a pooling layer that has weights."""
    from gen_unlearn.metrics.extractors.vision_model import PooledModel

    if any(True for _ in getattr(model, "pooler", nn.Identity()).parameters()):
        model.pooler = nn.Identity()
    return PooledModel(model)
