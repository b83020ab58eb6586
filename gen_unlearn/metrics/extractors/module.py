"""Any `torch.nn.Module` as a feature extractor."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn

from gen_unlearn.metrics.extractors.preprocessing import ImagePreprocessing
from gen_unlearn.repro import digest_bytes, digest_state


class ModuleFeatures:
    """Extract the output of a module that maps inputs ``(n, c, h, w)`` to floats ``(n, dim)``.

    Dimensions of length 1 behind `dim` are dropped. The module stays on its device, and must treat each image
    on its own. The digest is taken once, here: do not train the module afterwards.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        dim: int,
        preprocessing: ImagePreprocessing,
        weights_digest: str | None = None,
    ) -> None:
        """Wrap a module.

        Args:
            module: the network, in evaluation mode.
            name: what the extractor is, and what its numbers may be compared with.
            dim: length of a feature vector.
            preprocessing: from a uint8 image to the input of the module.
            weights_digest: SHA-256 of the files that the module was loaded from; without it, that of its text
                form and state.

        Raises:
            ValueError: the module is in training mode.
        """
        if module.training:
            raise ValueError(f"expected {name} in evaluation mode, got training mode; call its eval() first")
        self.name = name
        self.dim = dim
        self.resize = preprocessing.resize
        weights = weights_digest or digest_bytes(
            repr(module).encode(), digest_state(module.state_dict()).encode()
        )
        self.digest = digest_bytes(preprocessing.description.encode(), weights.encode())
        self._module = module
        self._preprocessing = preprocessing

    def preprocess(self, image: np.ndarray) -> torch.Tensor:
        """Map a uint8 image ``(height, width, channels)``, to the float32 input of the module."""
        return self._preprocessing(image)

    @torch.inference_mode()
    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs ``(n, c, h, w)`` to float32 features ``(n, dim)``, on the device of the module.

        Raises:
            ValueError: the module returns something else.
        """
        tensors = itertools.chain(self._module.parameters(), self._module.buffers())
        features = self._module(inputs.to(next(tensors, inputs).device))
        if not isinstance(features, torch.Tensor) or features.numel() != len(inputs) * self.dim:
            got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ValueError(
                f"expected features of shape {(len(inputs), self.dim)} from {self.name}, got {got}; "
                "correct its `dim`, or wrap the module so that it returns one vector per image"
            )
        return features.reshape(len(inputs), self.dim).float()


def output_dim(module: nn.Module, preprocessing: ImagePreprocessing) -> int:
    """Return how many values a module gives for one image, from a trial on a black one of 64 x 64 pixels.

    Raises:
        ValueError: the module does not take such an input, or does not return a tensor.
    """
    image = preprocessing(np.zeros((64, 64, 3), dtype=np.uint8))[None]
    tensors = itertools.chain(module.parameters(), module.buffers())
    try:
        with torch.inference_mode():
            features = module(image.to(next(tensors, image).device))
    except RuntimeError as error:
        raise ValueError(
            f"expected a network that takes inputs of shape {tuple(image.shape)}, got: "
            f"{str(error).strip().splitlines()[-1]}; check the size in the preprocessing"
        ) from error
    if not isinstance(features, torch.Tensor):
        raise ValueError(
            f"expected a network that returns a tensor, got {type(features).__name__}; "
            "wrap it so that it returns one vector per image"
        )
    return features.numel()
